/* What bionic's headers of ours promise, against its ABI on 64-bit ARM: sizes and offsets in bytes, and numbers where
 * other libcs have others. tests/compile/test_bionic.py compiles this. The values are those of AOSP's own headers. */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SIZE(type, bytes)       _Static_assert(sizeof(type) == (bytes), #type)
#define AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type "." #field)
#define IS(name, value)         _Static_assert((name) == (value), #name)

SIZE(pthread_t, 8);
SIZE(pthread_attr_t, 56);
SIZE(pthread_mutex_t, 40);
SIZE(pthread_cond_t, 48);
SIZE(pthread_barrier_t, 32);
SIZE(cpu_set_t, 128);
SIZE(sigset_t, 8);
SIZE(siginfo_t, 128);
SIZE(off_t, 8);
SIZE(time_t, 8);
SIZE(socklen_t, 4);
SIZE(nfds_t, 4);

SIZE(struct sigaction, 32);
AT(struct sigaction, sa_flags, 0);
AT(struct sigaction, sa_handler, 8);
AT(struct sigaction, sa_mask, 16);
SIZE(struct signalfd_siginfo, 128);

SIZE(struct stat, 128);
AT(struct stat, st_ino, 8);
AT(struct stat, st_mode, 16);
AT(struct stat, st_uid, 24);
AT(struct stat, st_size, 48);
AT(struct stat, st_blocks, 64);
AT(struct stat, st_mtim, 88);
AT(struct stat, st_ctim, 104);
SIZE(struct statvfs, 112);
AT(struct statvfs, f_frsize, 8);
AT(struct statvfs, f_bavail, 32);
SIZE(struct dirent, 280);
AT(struct dirent, d_type, 18);
AT(struct dirent, d_name, 19);
SIZE(struct FTW, 8);

SIZE(struct timespec, 16);
SIZE(struct timeval, 16);
SIZE(struct tm, 56);
AT(struct tm, tm_gmtoff, 40);
SIZE(struct rusage, 144);
AT(struct rusage, ru_maxrss, 32);
AT(struct rusage, ru_minflt, 64);
AT(struct rusage, ru_nvcsw, 128);

SIZE(struct sockaddr_in, 16);
SIZE(struct sockaddr_in6, 28);
SIZE(struct sockaddr_un, 110);
SIZE(struct sockaddr_storage, 128);
SIZE(struct pollfd, 8);

IS(_SC_PAGESIZE, 0x27);
IS(FTW_DEPTH, 4);
IS(RTLD_NOW, 2);
IS(O_DIRECTORY, 040000);
IS(O_NOFOLLOW, 0100000);
IS(O_CLOEXEC, 02000000);
IS(AT_FDCWD, -100);
IS(CLOCK_BOOTTIME, 7);
IS(MAP_ANONYMOUS, 0x20);
IS(SOL_SOCKET, 1);
IS(SO_REUSEADDR, 2);
IS(SIGCHLD, 17);
IS(SYS_futex, 98);
IS(SYS_getrandom, 278);
IS(SYS_mlock2, 284);
IS(SYS_preadv2, 286);
