//! How a guest, and QEMU's hot-plug controller, handle a request to release a device.

use std::time::Duration;

/// How long a guest takes to answer by default.
pub(super) const ANSWER: Duration = Duration::from_millis(5);

/// A second press of a slot's button within this time takes the first one back.
///
/// # Source
/// Linux `drivers/pci/hotplug/pciehp_ctrl.c`: Linux carries a press out after 5 s.
pub(super) const PRESS: Duration = Duration::from_secs(5);

/// How a guest handles requests. A paused guest handles them at its resume. The default answers after 5 ms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// It releases every device after this time, and powers off when asked.
    Answers(Duration),
    /// It handles no request. With ACPI, a reset carries out the requests all the same.
    Silent,
    /// QEMU refuses this many requests, because the slots blink. Then the guest answers after 5 ms.
    Busy(usize),
    /// It releases a device, and the event is sent, before the call returns.
    EventBeforeReturn,
    /// It is still booting and handles no request until [`Model::finish_boot`](super::Model::finish_boot). ACPI then
    /// carries out the requests together with the next request or plug.
    InFirmware,
    /// It reports that it does not release the device (pSeries).
    RemovalFailed,
    /// It answers after 5 ms, but never for the device with this alias.
    Refuses(String),
    /// It answers after 5 ms, and its agent answers every command with this text.
    AgentSays(String),
    /// It answers after 5 ms, and its agent refuses every command with this text, which libvirt quotes in its error.
    AgentRefuses(String),
}

impl Guest {
    /// How long it takes to release this device; `None` if it does not release it.
    pub(super) fn releases(&self, alias: &str) -> Option<Duration> {
        match self {
            Self::Answers(after) => Some(*after),
            Self::Busy(_) | Self::AgentSays(_) | Self::AgentRefuses(_) => Some(ANSWER),
            Self::EventBeforeReturn => Some(Duration::ZERO),
            Self::Refuses(kept) if kept != alias => Some(ANSWER),
            Self::Refuses(_) | Self::Silent | Self::InFirmware | Self::RemovalFailed => None,
        }
    }

    /// How long it takes to power off; `None` if it ignores the power button.
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

/// How QEMU's controller handles a second request for a device, while the guest has not carried out the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hotplug {
    /// It repeats the request to the guest.
    ///
    /// # Source
    /// QEMU 8.1 and later, `hw/acpi/pcihp.c`: a pending request expires after a millisecond.
    #[default]
    Acpi,
    /// It refuses it: "already in the process of unplug".
    ///
    /// # Source
    /// QEMU 6.1 to 8.0: a pending request never expires.
    AcpiOnce,
    /// It refuses it within 5 s: "already in the process of unplug". Later it is a new request.
    ///
    /// # Source
    /// QEMU `hw/pci/pcie.c`.
    Native,
    /// Within 5 s it takes the first request back: the device stays. Later it is a new request.
    ///
    /// # Source
    /// QEMU before 6.2 presses the button at every request.
    NativeCancels,
}
