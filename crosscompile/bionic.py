"""Android's libc, bionic, for programs that are built without the NDK.

runtime_c/bionic has headers with what the runtime uses of it, and the program's start. To link, there need only be
libraries with bionic's names in them: those made here have no code. The phone's own take their place when a program
starts. Layouts and numbers are those of 64-bit ARM, and those of the kernel come from its own headers, as Zig has them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from crosscompile.data import data_path
from crosscompile.errors import CodegenError
from crosscompile.ndk import find_ndk
from crosscompile.target import Target

LEAST_API = 24
"""The API level that has all of FUNCTIONS and OBJECTS (libc.map.txt and libdl.map.txt in bionic's sources)."""

FUNCTIONS = {
    "libdl.so": ["dlclose", "dlopen", "dlsym"],
    "libc.so": """
        __errno __libc_init __stack_chk_fail _exit accept4 access bind bsearch calloc chdir clock_gettime close closedir
        dprintf dup2 eventfd execv exit fchmod fclose fdatasync fdopendir ferror fflush fgets flock fopen fork fprintf
        fread free fstat fstatat fsync ftruncate futimens fwrite getauxval getcwd getenv getpid getrusage getsockname
        gmtime_r inet_ntop inet_pton isatty kill link listen localeconv localtime_r lseek lstat madvise malloc memchr
        memcmp memcpy memmem memmove memset mincore mkdir mlock mmap mprotect munmap nftw open openat opendir pipe2 poll
        posix_fadvise posix_memalign prctl pread printf pthread_attr_destroy pthread_attr_init
        pthread_attr_setstacksize pthread_barrier_destroy pthread_barrier_init pthread_barrier_wait pthread_cond_destroy
        pthread_cond_init pthread_cond_signal pthread_cond_wait pthread_create pthread_join pthread_mutex_destroy
        pthread_mutex_init pthread_mutex_lock pthread_mutex_unlock pthread_sigmask putchar puts pwrite qsort read
        readdir readlink realloc recv remove rename renameat rmdir sched_getaffinity sched_setaffinity send sendfile
        sendto setenv setsid setsockopt shutdown sigaction sigaddset sigemptyset sigfillset signal signalfd sigprocmask
        snprintf socket stat statvfs strcasecmp strchr strcmp strcspn strdup strerror strftime strlen strncasecmp
        strncmp strpbrk strrchr strspn strstr strtod strtok_r strtol strtoll strtoul strtoull symlink syscall sysconf
        time unlink unlinkat unsetenv vsnprintf wait4 waitpid write
    """.split(),
}
OBJECTS = {"libc.so": ["stderr", "stdout"]}
LINKER = "/system/bin/linker64"
STACK_PROTECTOR = ("-Xclang", "-stack-protector", "-Xclang", "2")
"""-fstack-protector-strong, which zig cc refuses where it has no libc of its own."""


def is_used(target: Target) -> bool:
    """Whether the program for `target` is linked with these: a static one cannot load a driver, and there is no NDK."""
    return target.os == "android" and target.gpu is not None and find_ndk(target) is None


def compiler(target: Target) -> list[str]:
    """The command that compiles for a phone. CodegenError, with the remedy, where there are no headers for it."""
    if target.arch != "aarch64":
        raise CodegenError(
            f"without Android's NDK, programs that load a GPU's driver are built for aarch64 alone, not {target.arch}; "
            "set ANDROID_NDK_HOME to an unpacked NDK, or use --device cpu"
        )
    if target.android_api is None or target.android_api < LEAST_API:
        said = "names none" if target.android_api is None else f"says {target.android_api}"
        raise CodegenError(
            f"without Android's NDK, programs that load a GPU's driver need API {LEAST_API}, and the board {said} "
            "(target.android_api of its manifest); raise it, set ANDROID_NDK_HOME to an unpacked NDK, or use "
            "--device cpu"
        )
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise CodegenError("the C compiler is missing; install ziglang")
    kernel = Path(spec.origin).parent / "lib/libc/include"
    includes = (data_path("runtime_c") / "bionic/include", kernel / "aarch64-linux-any", kernel / "any-linux-any")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-android"]
    return [*zig, "-nostdlib", *(f"-I{path}" for path in includes)]


def sources() -> list[Path]:
    """What is compiled with a program, and the headers, in a fixed order."""
    return sorted((data_path("runtime_c") / "bionic").glob("**/*.[ch]"))


def stubs() -> dict[str, str]:
    """The libraries to link with, by their names, as assembly."""
    return {
        library: _stub(names, "function") + _stub(OBJECTS.get(library, []), "object")
        for library, names in FUNCTIONS.items()
    }


def link_flags() -> list[str]:
    """What links a program with the libraries in the working directory."""
    return [f"-Wl,--dynamic-linker={LINKER}", *FUNCTIONS]


def _stub(names: list[str], kind: str) -> str:
    return "".join(f".globl {name}\n.type {name}, %{kind}\n.size {name}, 8\n{name}: .xword 0\n" for name in names)
