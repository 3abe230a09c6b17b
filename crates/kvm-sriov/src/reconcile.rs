//! Reconciliation: what a VM should have, what it has, and what is claimed are made equal.

use crate::error::Cause;
use crate::vm::Vm;
use crate::xml::OperationKind;

/// Puts right what an earlier action left of a VM whose lock is held: nobody works on it any more.
///
/// # Errors
/// It can't be put right; what was put right until then is right.
pub(crate) fn mend(vm: &mut Vm<'_>) -> Result<(), Cause> {
    vm.unplug_strays()?;
    let missing = vm.missing();
    let plugged: Vec<_> = missing.iter().map(|nic| nic.position).collect();
    vm.plug(&missing)?;
    vm.plug_dummies()?;
    match vm.wanted.operation.as_ref().map(|operation| operation.kind.clone()) {
        Some(OperationKind::PendingUnplug { mut positions }) => {
            positions.retain(|position| !plugged.contains(position));
            let rest = (!positions.is_empty()).then_some(OperationKind::PendingUnplug { positions });
            vm.set_operation(rest)
        }
        Some(OperationKind::Save) => vm.finish(),
        _ => Ok(()),
    }
}
