//! libvirt's lists of typed parameters.

use std::ffi::{CStr, CString, c_int};
use std::ptr;

use virt::error::Error;
use virt::sys;

use super::zero;

/// The value of a parameter of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::libvirt) enum Value {
    Int(i32),
    Unsigned(u64),
    Text(CString),
}

/// A parameter of a call.
pub(in crate::libvirt) type Parameter = (&'static CStr, Value);

/// A list of typed parameters in libvirt's memory. `virt`'s own type makes a `Vec` of memory that libvirt allocated,
/// and leaks texts when a call fails.
pub(super) struct Parameters {
    pub(super) array: sys::virTypedParameterPtr,
    pub(super) length: c_int,
    room: c_int,
}

impl Parameters {
    pub(super) fn new() -> Self {
        Self { array: ptr::null_mut(), length: 0, room: 0 }
    }

    pub(super) fn add(&mut self, name: &CStr, value: &Value) -> Result<(), Error> {
        let (array, length, room) = (&mut self.array, &mut self.length, &mut self.room);
        // SAFETY: the three fields belong to one list: libvirt grows the array and updates both numbers. libvirt copies
        // the name and the text.
        zero(unsafe {
            match value {
                Value::Int(value) => sys::virTypedParamsAddInt(array, length, room, name.as_ptr(), *value),
                Value::Unsigned(value) => sys::virTypedParamsAddULLong(array, length, room, name.as_ptr(), *value),
                Value::Text(value) => sys::virTypedParamsAddString(array, length, room, name.as_ptr(), value.as_ptr()),
            }
        })
    }

    /// The value; `None` when no parameter has this name and type.
    pub(super) fn int(&self, name: &CStr) -> Option<c_int> {
        let mut value = 0;
        // SAFETY: the array has `length` parameters; name and place live during the call.
        let found = unsafe { sys::virTypedParamsGetInt(self.array, self.length, name.as_ptr(), &mut value) };
        (found == 1).then_some(value)
    }

    /// The value; `None` when no parameter has this name and type.
    pub(super) fn unsigned(&self, name: &CStr) -> Option<u64> {
        let mut value = 0;
        // SAFETY: the array has `length` parameters; name and place live during the call.
        let found = unsafe { sys::virTypedParamsGetULLong(self.array, self.length, name.as_ptr(), &mut value) };
        (found == 1).then_some(value)
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        // SAFETY: the array is null or has `length` parameters that libvirt allocated, and it is not used afterwards.
        unsafe { sys::virTypedParamsFree(self.array, self.length) };
    }
}
