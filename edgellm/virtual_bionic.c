/* What bionic's names and layouts are, in terms of musl's: the emulated phone's libdl.so, whose linker and libc are
 * Debian's build of musl. Only what crosscompile/bionic.py lists and musl has otherwise; where neither differs, a
 * program gets musl's own. It shows that a program starts and finds all it needs, not what the real bionic does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

int __libc_start_main(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void), void (*)(void));

void __libc_init(long *stack, void (*unused)(void), int (*program)(int, char **, char **), const void *lists) {
    (void)unused, (void)lists;
    __libc_start_main(program, (int)*stack, (char **)(stack + 1), NULL, NULL, NULL);
}

int *__errno(void) {
    return __errno_location();
}

long sysconf(int name) {
    if (name != 0x27) { /* _SC_PAGESIZE there */
        errno = EINVAL;
        return -1;
    }
    return getpagesize();
}

struct bionic_sigaction {
    int flags;
    void (*handler)(int);
    unsigned long mask;
    void (*restorer)(void);
};

int sigaction(int number, const struct sigaction *action_, struct sigaction *before_) {
    const struct bionic_sigaction *action = (const void *)action_;
    struct bionic_sigaction *before = (void *)before_;
    int (*next)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
    struct sigaction own = {0}, old = {0};
    if (action != NULL) {
        own.sa_flags = action->flags;
        own.sa_handler = action->handler;
        memcpy(&own.sa_mask, &action->mask, sizeof action->mask);
    }
    int result = next(number, action != NULL ? &own : NULL, &old);
    if (before != NULL) {
        *before = (struct bionic_sigaction){old.sa_flags, old.sa_handler, 0, NULL};
        memcpy(&before->mask, &old.sa_mask, sizeof before->mask);
    }
    return result;
}

int nftw(const char *path, int (*visit)(const char *, const struct stat *, int, struct FTW *), int most_open,
         int flags) {
    int (*next)(const char *, int (*)(const char *, const struct stat *, int, struct FTW *), int, int) =
        dlsym(RTLD_NEXT, "nftw");
    return next(path, visit, most_open, (flags & 1 ? FTW_PHYS : 0) | (flags & 4 ? FTW_DEPTH : 0));
}
