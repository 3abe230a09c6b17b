//! The calls of libvirt's C API that the crate `virt` lacks.
