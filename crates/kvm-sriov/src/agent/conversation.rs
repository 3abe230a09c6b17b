//! Lines in both directions, and heartbeats: a connection can be lost without either end being told.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lines::Lines;
use crate::base::lock;
use crate::os::{self, Receiver, Side};

/// A heartbeat.
const ALIVE: &str = "alive";

/// The longest line, in bytes. The longest that is sent is a snapshot's XML, below 100 KiB. An end that sends a longer
/// one is not listened to any more.
const LINE_LIMIT: u64 = 8 * 1024 * 1024;

/// How many bytes of lines may wait to be read. Each end sends one line and waits for the answer, so an end that sends
/// more is not listened to any more.
const WAITING_LIMIT: usize = 16 * 1024 * 1024;

/// What a line takes besides its bytes.
const LINE_COST: usize = 64;

/// How often each end sends a heartbeat, and after how much silence an end takes the other one for lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heartbeat {
    pub(super) every: Duration,
    pub(super) silence: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { every: Duration::from_secs(10), silence: Duration::from_secs(60) }
    }
}

type Writer = Arc<Mutex<Option<Box<dyn Write + Send>>>>;

/// A line that is to be sent. The sender is told when it has been.
struct Outgoing {
    line: String,
    sent: Sender<()>,
}

/// One end of a conversation. One thread listens, whatever the owner is doing. Another one writes lines and heartbeats,
/// because an end that does not read makes the writer wait without a limit.
pub(super) struct Conversation {
    lines: Receiver<String>,
    /// How many bytes of lines wait in `lines`.
    waiting: Arc<AtomicUsize>,
    heard: Arc<Mutex<Instant>>,
    ended: Arc<AtomicBool>,
    writer: Writer,
    silence: Duration,
    /// The thread that writes ends when this is dropped.
    outgoing: Sender<Outgoing>,
}

/// What came from the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// A line.
    Line(String),
    /// Nothing, within the time that the caller gave.
    Nothing,
    /// The other end closed its side, or has been silent for too long.
    Ended,
}

impl Conversation {
    /// Begins to listen and to send heartbeats.
    ///
    /// # Errors
    /// A thread could not be started. Nothing was sent.
    pub(super) fn new(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        heartbeat: Heartbeat,
    ) -> io::Result<Self> {
        let heard = Arc::new(Mutex::new(os::now()));
        let ended = Arc::new(AtomicBool::new(false));
        let writer: Writer = Arc::new(Mutex::new(Some(Box::new(output))));
        let (sender, lines) = os::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let listener =
            Listener { sender, waiting: Arc::clone(&waiting), heard: Arc::clone(&heard), ended: Arc::clone(&ended) };
        os::spawn("listen", Side::Process, move || listener.listen(input))?;
        let (outgoing, to_send) = os::channel::<Outgoing>();
        let speaker = Arc::clone(&writer);
        os::spawn("speak", Side::Process, move || speak(&speaker, &to_send, heartbeat.every))?;
        Ok(Self { lines, waiting, heard, ended, writer, silence: heartbeat.silence, outgoing })
    }

    /// Sends a line. Returns whether it left this end; only an answer tells that it arrived. An end that does not read
    /// is waited for as long as one that is silent, and then counts as lost.
    pub(super) fn say(&self, line: impl ToString) -> bool {
        os::step("line", "send");
        let (sent, is_sent) = os::channel();
        let outgoing = Outgoing { line: line.to_string(), sent };
        if self.outgoing.send(outgoing).is_err() {
            return false;
        }
        match is_sent.recv_timeout(self.silence) {
            Ok(()) => true,
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                log::debug!("the other end has not read for {} s", self.silence.as_secs());
                self.ended.store(true, Ordering::Release);
                false
            }
        }
    }

    /// The next line; waits at most `timeout`.
    pub(super) fn next(&self, timeout: Duration) -> Heard {
        let end = os::now() + timeout;
        loop {
            let wait = end.min(self.silent_at()).saturating_duration_since(os::now());
            match self.lines.recv_timeout(wait) {
                Ok(line) => {
                    self.waiting.fetch_sub(line.len() + LINE_COST, Ordering::AcqRel);
                    return Heard::Line(line);
                }
                Err(RecvTimeoutError::Disconnected) => return Heard::Ended,
                Err(RecvTimeoutError::Timeout) if os::now() >= self.silent_at() => return Heard::Ended,
                Err(RecvTimeoutError::Timeout) if os::now() >= end => return Heard::Nothing,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The next line, however long it takes; `None` when the conversation has ended.
    pub(super) fn wait(&self) -> Option<String> {
        match self.wait_for(None) {
            Heard::Line(line) => Some(line),
            Heard::Nothing | Heard::Ended => None,
        }
    }

    /// The next line; waits at most this long, or without a limit.
    pub(super) fn wait_for(&self, limit: Option<Duration>) -> Heard {
        let begin = os::now();
        loop {
            let left = limit.map_or(self.silence, |limit| limit.saturating_sub(os::since(begin)));
            match self.next(left) {
                Heard::Nothing if limit.is_none_or(|limit| os::since(begin) < limit) => {}
                heard => return heard,
            }
        }
    }

    /// Whether the other end has closed its side or has been silent for too long. Does not wait.
    pub(super) fn is_over(&self) -> bool {
        self.ended.load(Ordering::Acquire) || os::now() >= self.silent_at()
    }

    fn silent_at(&self) -> Instant {
        *lock(&self.heard) + self.silence
    }
}

impl Drop for Conversation {
    /// Closes the output at once, so that the other end notices: the thread that writes may hold the writer a moment
    /// longer. While it still writes a line, it closes the output itself, and is not waited for.
    fn drop(&mut self) {
        if let Ok(mut writer) = self.writer.try_lock() {
            *writer = None;
        }
    }
}

/// Writes lines, and heartbeats between them, until the other end no longer listens or nobody can send a line.
fn speak(writer: &Writer, to_send: &Receiver<Outgoing>, every: Duration) {
    loop {
        let is_written = match to_send.recv_timeout(every) {
            Ok(Outgoing { line, sent }) => {
                let is_written = write(writer, &line);
                // Nobody waits for a line that took too long.
                if is_written && sent.send(()).is_err() {
                    log::debug!("a line was sent late");
                }
                is_written
            }
            Err(RecvTimeoutError::Timeout) => {
                os::step("line", "heartbeat");
                write(writer, ALIVE)
            }
            Err(RecvTimeoutError::Disconnected) => false,
        };
        if !is_written {
            return;
        }
    }
}

fn write(writer: &Writer, line: &str) -> bool {
    let mut writer = lock(writer);
    let Some(output) = writer.as_mut() else { return false };
    match output.write_all(format!("{line}\n").as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => true,
        Err(error) => {
            log::debug!("the other end no longer listens: {error}");
            *writer = None;
            false
        }
    }
}

struct Listener {
    sender: Sender<String>,
    waiting: Arc<AtomicUsize>,
    heard: Arc<Mutex<Instant>>,
    ended: Arc<AtomicBool>,
}

impl Listener {
    fn listen(self, input: impl Read) {
        for line in Lines::new(input, LINE_LIMIT) {
            *lock(&self.heard) = os::now();
            if line.text == ALIVE {
                continue;
            }
            let cost = line.text.len() + LINE_COST;
            let waiting = self.waiting.fetch_add(cost, Ordering::AcqRel) + cost;
            // The begin of a line may say something else than the whole: `to=node1` is a part of `to=node12`.
            if !line.is_whole || waiting > WAITING_LIMIT {
                log::debug!(
                    "the connection broke within a line, or the other end sends more than a host of this driver"
                );
                break;
            }
            if self.sender.send(line.text).is_err() {
                break;
            }
        }
        self.ended.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;

    const FAST: Heartbeat = Heartbeat { every: Duration::from_millis(20), silence: Duration::from_millis(400) };

    fn pair(here: Heartbeat, there: Heartbeat) -> (Conversation, Conversation) {
        // One stream for each direction, like pipes.
        let ((to_there, from_here), (to_here, from_there)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        (Conversation::new(from_there, to_there, here).unwrap(), Conversation::new(from_here, to_here, there).unwrap())
    }

    #[test]
    fn lines_arrive_in_order_and_heartbeats_are_not_seen() {
        let (here, there) = pair(FAST, FAST);
        assert!(here.say("one") && here.say("two"));
        assert_eq!(there.wait().as_deref(), Some("one"));
        assert_eq!(there.wait().as_deref(), Some("two"));
        assert_eq!(there.next(Duration::from_millis(100)), Heard::Nothing);
        assert!(!there.is_over());
    }

    #[test]
    fn an_end_that_is_busy_is_alive() {
        let (here, there) = pair(FAST, FAST);
        thread::sleep(FAST.silence * 2);
        assert!(!here.is_over() && !there.is_over());
    }

    #[test]
    fn waiting_for_an_end_that_is_alive_and_does_not_answer_has_a_limit() {
        let (here, _there) = pair(FAST, FAST);
        let begin = Instant::now();
        assert_eq!(here.wait_for(Some(FAST.silence * 2)), Heard::Nothing);
        assert!(begin.elapsed() >= FAST.silence * 2 && !here.is_over());
    }

    #[test]
    fn silence_is_an_end() {
        let mute = Heartbeat { every: Duration::from_secs(600), ..FAST };
        let (here, _there) = pair(FAST, mute);
        assert_eq!(here.wait(), None);
        assert!(here.is_over());
    }

    #[test]
    fn a_line_whose_end_was_lost_is_not_heard() {
        for (sent, heard) in [
            ("go\nmigrate vm=one-42 to=node1", Some("go")),
            ("migrate vm=one-42 to=node1", None),
            ("finish uuid=x id=12\r\n", Some("finish uuid=x id=12")),
        ] {
            let there = Conversation::new(sent.as_bytes(), io::sink(), FAST).unwrap();
            assert_eq!(there.wait().as_deref(), heard);
            assert_eq!((there.wait(), there.is_over()), (None, true));
        }
        let endless = Conversation::new(io::repeat(b'x'), io::sink(), Heartbeat::default()).unwrap();
        assert_eq!(endless.wait(), None);
    }

    #[test]
    fn a_dropped_end_is_noticed_at_once_and_its_last_lines_arrive() {
        let (here, there) = pair(Heartbeat::default(), Heartbeat::default());
        here.say("last");
        drop(here);
        assert_eq!(there.wait().as_deref(), Some("last"));
        assert_eq!(there.wait(), None);
        assert!(there.is_over());
    }

    #[test]
    fn an_end_that_reads_nothing_is_not_waited_for_without_a_limit() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let here = Conversation::new(io::empty(), ours, FAST).unwrap();
        let line = "x".repeat(4 << 20);
        assert!(!here.say(&line), "more than a socket takes");
        assert!(here.is_over() && !here.say("more"));
        drop(here);
        drop(theirs);
    }

    #[test]
    fn an_end_that_sends_without_an_end_takes_no_endless_memory() {
        let (here, _there) = UnixStream::pair().unwrap();
        let line = Conversation::new(io::repeat(b'x'), here.try_clone().unwrap(), Heartbeat::default()).unwrap();
        assert_eq!(line.wait(), None, "no part of a line that is too long is taken for a line");
        let lines = io::repeat(b'\n').take(1 << 32);
        let lines = Conversation::new(lines, here, Heartbeat::default()).unwrap();
        while !lines.ended.load(Ordering::Acquire) {
            thread::yield_now();
        }
        let mut number = 0;
        while lines.wait().is_some() {
            number += 1;
        }
        assert!((1_000..=WAITING_LIMIT / LINE_COST).contains(&number), "{number}");
    }
}
