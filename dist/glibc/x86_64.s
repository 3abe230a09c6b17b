# Functions of glibc that the programs call, under their oldest symbol versions (docs/decisions/0010-older-glibc.md).
#
# A program that is linked with today's glibc asks for today's symbol versions. So it would not start on an older
# system, although glibc keeps all old versions and they do the same. The linker takes each function here instead of
# glibc's. It jumps to glibc's old version.

    # Each in a section of its own: the linker leaves out those that are not called.
    .macro old name, version
    .section .text.\name, "ax", @progbits
    .symver glibc_\name, \name@GLIBC_\version
    .globl \name
    .hidden \name
    .type \name, @function
\name:
    jmp glibc_\name@PLT
    .size \name, . - \name
    .endm

# Before 2.33 programs called stat through a function that also takes the version of the structure, which is 1.
    .macro stat name, target
    .section .text.\name, "ax", @progbits
    .globl \name
    .hidden \name
    .type \name, @function
\name:
    mov %rsi, %rdx
    mov %rdi, %rsi
    mov $1, %edi
    jmp \target@PLT
    .size \name, . - \name
    .endm

    # Since 2.34 glibc itself runs a program's initializers. Older versions skip those that crt1.o does not pass on.
    # Rust's standard library has one, and works without it.
    old __libc_start_main, 2.2.5

    # Since 2.34 these are in libc.so, before in libpthread.so and libdl.so. So the programs are linked with these
    # libraries.
    old dlsym, 2.2.5
    old pthread_attr_getguardsize, 2.2.5
    old pthread_attr_getstack, 2.2.5
    old pthread_attr_setstacksize, 2.2.5
    old pthread_create, 2.2.5
    old pthread_detach, 2.2.5
    old pthread_getattr_np, 2.2.5
    old pthread_join, 2.2.5
    old pthread_key_create, 2.2.5
    old pthread_key_delete, 2.2.5
    old pthread_setname_np, 2.12
    old pthread_setspecific, 2.2.5
    old pthread_sigmask, 2.2.5

    stat stat64, __xstat64
    stat fstat64, __fxstat64
    stat lstat64, __lxstat64

    # glibc has it only since 2.30.
    .section .text.gettid, "ax", @progbits
    .globl gettid
    .hidden gettid
    .type gettid, @function
gettid:
    mov $186, %eax
    syscall
    ret
    .size gettid, . - gettid

    # glibc has them only since 2.29. Rust's standard library calls one for a program that is started in another directory,
    # which the driver does not do. It would find a weak symbol without a value only in a program, not in a shared object.
    .macro unsupported name
    .section .text.\name, "ax", @progbits
    .globl \name
    .hidden \name
    .type \name, @function
\name:
    mov $38, %eax # ENOSYS
    ret
    .size \name, . - \name
    .endm

    unsupported posix_spawn_file_actions_addchdir_np
    unsupported posix_spawn_file_actions_addchdir

    .section .note.GNU-stack, "", @progbits
