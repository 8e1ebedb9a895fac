/* What a command wants from its process: time, signals, standard output. */
#include "posix.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

double clock_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* A signal handler reaches nothing else. */
static volatile sig_atomic_t n_interrupts;
static ellm_context *volatile interrupted_context;

static void interrupt(int number) {
    n_interrupts = n_interrupts + 1;
    if (n_interrupts > 2) {
        _exit(128 + number);
    }
    ellm_context *context = interrupted_context;
    if (context != NULL) {
        ellm_context_cancel(context, true);
    }
}

void interrupts_catch(void) {
    struct sigaction action = {.sa_handler = interrupt}; /* no SA_RESTART: reading the prompt ends too */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void interrupts_cancel(ellm_context *context) {
    interrupted_context = context;
}
int interrupts_count(void) {
    return n_interrupts;
}
void interrupts_clear(void) {
    n_interrupts = 0;
}

ellm_status output_write(const char *text, size_t n_bytes, ellm_error *error) {
    while (n_bytes > 0) {
        ssize_t n = write(STDOUT_FILENO, text, n_bytes);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return ellm_fail(error, ELLM_IO, "standard output: %s", strerror(errno));
        }
        text += n;
        n_bytes -= (size_t)n;
    }
    return ELLM_OK;
}
