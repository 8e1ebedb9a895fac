/* supervisor.h: a server that is kept running, and the folder that says how it is (supervise.c has the commands). */
#ifndef EDGELLM_RT_SUPERVISOR_H
#define EDGELLM_RT_SUPERVISOR_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "buffer.h"

enum {
    watchdog_s = 120,
    start_ms = 15 * 60 * 1000,  /* weights may have to be hashed first */
    stop_ms = 20 * 1000,        /* if the server does not ask for more */
    most_stop_ms = 3800 * 1000, /* the longest --grace, and more */
    least_pause_ms = 1000,
    most_pause_ms = 60 * 1000,
    good_run_ms = 60 * 1000, /* after which the next pause is the shortest again */
    log_bytes = 256 << 10,
    most_arguments = 64,
};

typedef struct supervisor {
    char program[PATH_MAX], folder[PATH_MAX];
    char *arguments[most_arguments + 4];
    int signals, notify, ready, told; /* ready: the server's standard output; told: who waits for the first start */
    pid_t server;                     /* 0: none */
    buffer line;                      /* of its standard output */
    char where[256];                  /* the members of its first line that say where it listens */
    bool has_told, is_ready, stops, restarts;
    unsigned n_starts;
    double began, signs, due, pause_ms; /* clock_ms: of this server, its last sign of life, when to do something */
} supervisor;

/* A file of the folder; -1 where it cannot be opened. */
int folder_open(const char *folder, const char *name, int flags);
/* Takes the lock of a folder that nobody supervises, in *file; false if somebody does. -1: there is no folder. */
bool folder_lock(const char *folder, int *file);
/* Whether somebody supervises in a folder. Looking keeps nobody from looking, and makes no file. */
bool folder_is_supervised(const char *folder, int *file);
/* Whose lock it is. */
pid_t folder_pid(int lock);
/* What FOLDER/state says; an empty text where there is none. */
void folder_state(const char *folder, buffer *b);

/* Detached from whoever started it, with the signals it lives by: keeps the server running until SIGTERM. v->told hears
 * "+" once it is up, or "!STATUS" if the first start fails. Never returns. */
_Noreturn void supervisor_run(supervisor *v, int lock);

#endif
