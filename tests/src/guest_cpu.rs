//! Reads the state of a guest's CPUs from QEMU's monitor, to detect that the emulated processor mixed up a guest and
//! its host.

/// No guest of the lab boots with more memory than this (bytes).
const MOST_GUEST_MEMORY: u64 = 512 << 20;

/// How many readings, a second apart, show that a CPU does not move.
pub(crate) const LOOKS: usize = 10;

/// The bit of a CPU's flags that enables interrupts.
const INTERRUPTS: u64 = 1 << 9;

/// One reading of a guest's CPU.
#[derive(Debug, PartialEq)]
struct GuestCpu {
    number: u64,
    /// The address of its page tables.
    cr3: u64,
    /// Its stack pointer, if interrupts are off in 64-bit mode. Firmware runs in other modes.
    rsp_without_interrupts: Option<u64>,
}

/// Reads the output of the monitor's `info registers -a`.
fn parse(registers: &str) -> Vec<GuestCpu> {
    let cpus = registers.split("CPU#").skip(1);
    let read = |text: &str| {
        let value = |name: &str, radix: u32| {
            let (_, rest) = text.split_once(name)?;
            u64::from_str_radix(rest.split(|c: char| !c.is_ascii_hexdigit()).next()?, radix).ok()
        };
        let number = text.split_whitespace().next()?.parse().ok()?;
        let is_off = value("RFL=", 16).is_some_and(|flags| flags & INTERRUPTS == 0) && value("HLT=", 10) == Some(0);
        let rsp_without_interrupts = if is_off { value("RSP=", 16) } else { None };
        Some(GuestCpu { number, cr3: value("CR3=", 16)?, rsp_without_interrupts })
    };
    cpus.filter_map(read).collect()
}

/// Whether a CPU of a running guest has the host's registers, or does not move.
///
/// * `looks` - outputs of `info registers -a`, a second apart; [`LOOKS`] of them show whether a CPU moves
///
/// A guest's page tables are in its own memory. A kernel disables interrupts only for moments. A CPU that lost its
/// interrupts waits for ever for the next one; this was seen with the scheduler's lock, which the timer's interrupt
/// wanted while the lock's owner was interrupted.
pub(crate) fn is_mixed_up(looks: &[&str]) -> bool {
    let looks: Vec<Vec<GuestCpu>> = looks.iter().map(|look| parse(look)).collect();
    let place = |cpu: &GuestCpu| Some((cpu.number, cpu.rsp_without_interrupts?));
    let stands = |at: (u64, u64)| looks.iter().all(|look| look.iter().any(|cpu| place(cpu) == Some(at)));
    let has_the_hosts = looks.iter().flatten().any(|cpu| cpu.cr3 >= MOST_GUEST_MEMORY);
    has_the_hosts || looks.len() >= LOOKS && looks[0].iter().filter_map(place).any(stands)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU's output for a guest that did not move, without the parts that are not read.
    const STANDS: &str = "\nCPU#0\nRAX=0000000000000001 RBX=ffff88800f836040 RCX=0000000000000009 RDX=0000000000000000\n\
        RSI=0000000000000001 RDI=ffff88800f836040 RBP=0000000000000000 RSP=ffffc90000003c30\n\
        RIP=ffffffff81d21880 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\n\
        CR0=80050033 CR2=0000000010eb1010 CR3=0000000006634000 CR4=00750ef0\n";

    /// The same for a second CPU, which waits.
    const WAITS: &str = "\nCPU#1\nRSI=0000000000000001 RDI=ffff88800f836040 RBP=0000000000000000 RSP=ffffc900000a3ee8\n\
        RIP=ffffffff81d12a3f RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
        CR0=80050033 CR2=0000000010eb1010 CR3=0000000006120000 CR4=00750ef0\n";

    /// The same for a firmware.
    const FIRMWARE: &str = "\nCPU#0\nESI=00000000 EDI=00000000 EBP=00000000 ESP=00006d20\n\
        EIP=0000b7c2 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\nCR0=00000010 CR2=00000000 CR3=00000000 CR4=00000000\n";

    #[test]
    fn registers_are_read() {
        let cpus = parse(&[STANDS, WAITS].concat());
        let read: Vec<_> = cpus.iter().map(|cpu| (cpu.number, cpu.cr3, cpu.rsp_without_interrupts)).collect();
        assert_eq!(read, [(0, 0x0663_4000, Some(0xffff_c900_0000_3c30)), (1, 0x0612_0000, None)]);
        assert_eq!(parse("error: Timed out during operation\n"), []);
    }

    #[test]
    fn a_cpu_that_stands_is_a_mix_up() {
        let both = [WAITS, &STANDS.replace("CPU#0", "CPU#2")].concat();
        assert!(is_mixed_up(&[STANDS; LOOKS]));
        assert!(is_mixed_up(&[both.as_str(); LOOKS]));
        assert!(is_mixed_up(&[&WAITS.replace("CR3=0000000006120000", "CR3=0000000099000000")]));
    }

    #[test]
    fn a_cpu_that_works_is_none() {
        let moved = STANDS.replace("RSP=ffffc90000003c30", "RSP=ffffc90000003c38");
        let mut looks = vec![STANDS; LOOKS];
        looks[5] = &moved;
        assert!(!is_mixed_up(&looks));
        looks[5] = "error: Timed out during operation\n";
        assert!(!is_mixed_up(&looks));
        assert!(!is_mixed_up(&[STANDS; LOOKS - 1]));
        assert!(!is_mixed_up(&[WAITS; LOOKS]));
        assert!(!is_mixed_up(&[FIRMWARE; LOOKS]));
        assert!(!is_mixed_up(&[]));
    }
}
