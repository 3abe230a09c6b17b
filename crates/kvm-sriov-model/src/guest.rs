//! What a guest, and QEMU's hot-plug controller in front of it, do with a request to release a device.

use std::time::Duration;

/// How long a guest takes that answers, if nothing else is said.
pub const ANSWER: Duration = Duration::from_millis(5);

/// Two presses of a slot's button within this time are one too many.
///
/// # Source
/// Linux `drivers/pci/hotplug/pciehp_ctrl.c`: the button is acted upon 5 s after it was pressed, and a second press in
/// this time takes the first one back.
pub const PRESS: Duration = Duration::from_secs(5);

/// What a guest does when it is asked. One that is paused hears at its resume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// It releases every device after this time, and powers off when asked.
    Answers(Duration),
    /// It never hears. What it was asked for is carried out by a reset all the same (ACPI only).
    Silent,
    /// Its slots blink for this many requests, which QEMU refuses; then it answers.
    Busy(usize),
    /// It is so fast that the device has gone, and the event come, before the call returns.
    EventBeforeReturn,
    /// It is still booting: it hears nothing, and forgets what it was asked until [`Model::boots`](super::Model::boots).
    /// ACPI then carries it out together with the next request or plug.
    InFirmware,
    /// It says that it does not release the device (pSeries).
    RemovalFailed,
    /// It answers, but never for the device with this alias.
    Refuses(String),
}

impl Guest {
    /// How long it takes to release this device; `None` when it does not.
    pub(super) fn releases(&self, alias: &str) -> Option<Duration> {
        match self {
            Self::Answers(after) => Some(*after),
            Self::Busy(_) => Some(ANSWER),
            Self::EventBeforeReturn => Some(Duration::ZERO),
            Self::Refuses(kept) if kept != alias => Some(ANSWER),
            Self::Refuses(_) | Self::Silent | Self::InFirmware | Self::RemovalFailed => None,
        }
    }

    /// How long it takes to power off; `None` when it does not hear the button.
    pub(super) fn powers_off(&self) -> Option<Duration> {
        match self {
            Self::Silent | Self::InFirmware => None,
            Self::Answers(after) => Some(*after),
            _ => Some(ANSWER),
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::Answers(ANSWER)
    }
}

/// What QEMU's controller does with a second request for a device whose first one is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hotplug {
    /// The guest is told again.
    ///
    /// # Source
    /// QEMU 8.1 and later, `hw/acpi/pcihp.c`: a pending request expires after a millisecond.
    #[default]
    Acpi,
    /// It is refused: "already in the process of unplug".
    ///
    /// # Source
    /// QEMU 6.1 to 8.0: a pending request never expires.
    AcpiOnce,
    /// It is refused within [`PRESS`]: "already in the process of unplug". Later it is a new request.
    ///
    /// # Source
    /// QEMU `hw/pci/pcie.c`.
    Native,
    /// It takes the first one back within [`PRESS`]: the device stays.
    ///
    /// # Source
    /// QEMU before 6.2, which presses the button at every request.
    NativeCancels,
}
