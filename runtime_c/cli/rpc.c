/* rpc: lets a host measure kernels on this machine through TVM's RPC. */
#include "posix.h"

#include "program.h"

#ifdef ELLM_RPC
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pool.h"
#include "server.h"

enum { least_key = 16, most_key = 256, queue_bytes = 200 };

static void print_ready(void *user, uint16_t port) {
    (void)user;
    printf("{\"type\":\"ready\",\"port\":%u,\"pid\":%d}\n", (unsigned)port, (int)getpid());
    fflush(stdout);
}

static void print_ended(void *user, int pid, const char *how) {
    (void)user;
    printf("{\"type\":\"ended\",\"pid\":%d,\"how\":\"%s\"}\n", pid, how);
    fflush(stdout);
}

/* The key is the first line of standard input: arguments and environment are for every process to see. */
static ellm_status read_key(char key[most_key + 2], ellm_error *error) {
    size_t n = 0;
    while (n <= most_key) {
        ssize_t got = read(STDIN_FILENO, key + n, 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0 || key[n] == '\n') {
            break;
        }
        if (key[n] <= ' ' || key[n] > '~' || key[n] == '"' || key[n] == '\\') {
            return ellm_fail(error, ELLM_USAGE, "the key has a character that is not allowed; use letters and digits");
        }
        n++;
    }
    key[n <= most_key ? n : most_key] = '\0';
    if (n < least_key || n > most_key) {
        return ellm_fail(error, ELLM_USAGE,
                         "a key of %d to %d characters is wanted as the first line of standard input", (int)least_key,
                         (int)most_key);
    }
    return ELLM_OK;
}

/* Cuts "127.0.0.1:9190" into address and port. */
static ellm_status split_address(const char *text, char host[64], uint16_t *port, ellm_error *error) {
    const char *colon = strrchr(text, ':');
    char *end = NULL;
    long number = colon == NULL ? 0 : strtol(colon + 1, &end, 10);
    if (colon == NULL || colon - text >= 64 || *end != '\0' || number < 1 || number > 65535) {
        return ellm_fail(error, ELLM_USAGE, "--tracker wants an address and a port as in 127.0.0.1:9190, not '%s'",
                         text);
    }
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    *port = (uint16_t)number;
    return ELLM_OK;
}

static ellm_status make_folder(const settings *s, char folder[PATH_MAX], ellm_error *error) {
    const char *temporary = getenv("TMPDIR");
    const char *where = s->work != NULL ? s->work : temporary != NULL ? temporary : "/tmp";
    char *absolute = realpath(where, NULL);
    if (absolute == NULL) {
        return ellm_fail(error, ELLM_IO, "%s: %s", where, strerror(errno));
    }
    int n = snprintf(folder, PATH_MAX, "%s/edgellm-rpc-XXXXXX", absolute);
    free(absolute);
    if (n < 0 || n >= PATH_MAX || mkdtemp(folder) == NULL) {
        return ellm_fail(error, ELLM_IO, "no folder can be made in %s: %s", where, strerror(errno));
    }
    return ELLM_OK;
}

ellm_status rpc_main(const settings *s, ellm_error *error) {
    char key[most_key + 2], host[64], folder[PATH_MAX];
    rpc_serve_options options = {.input = s->stay ? -1 : STDIN_FILENO, .ready = print_ready, .ended = print_ended};
    ellm_status status = ELLM_OK;
    ellm_cores_read(&options.cores);
    options.n_threads = options.cores.n_useful < ELLM_POOL_THREADS ? options.cores.n_useful : ELLM_POOL_THREADS;
    options.n_threads = s->threads > 0 ? (int32_t)s->threads : options.n_threads;
    options.port = s->port > 0 ? (uint16_t)s->port : 0;
    options.longest_session_s = s->longest > 0 ? s->longest : 0;
    if (options.n_threads > ELLM_POOL_THREADS) {
        return ellm_fail(error, ELLM_USAGE, "--threads: at most %d", (int)ELLM_POOL_THREADS);
    }
    if (s->tracker != NULL) {
        if (s->queue == NULL || s->queue[0] == '\0' || strlen(s->queue) > queue_bytes
            || strpbrk(s->queue, "\"\\ \t\r\n") != NULL) {
            return ellm_fail(error, ELLM_USAGE, "--tracker goes with --queue NAME, without spaces and quotes");
        }
        status = split_address(s->tracker, host, &options.tracker_port, error);
        options.tracker_host = host;
        options.queue = s->queue;
    } else {
        status = read_key(key, error);
        options.key = key;
    }
    if (status == ELLM_OK) {
        status = make_folder(s, folder, error);
    }
    if (status == ELLM_OK) {
        options.folder = folder;
        status = ellm_rpc_serve(&options, error);
        rmdir(folder);
    }
    return status;
}
#else
#include "error.h"

ellm_status rpc_main(const settings *s, ellm_error *error) {
    (void)s;
    return ellm_fail(error, ELLM_USAGE,
                     "this edgellm-rt has no RPC agent: it is linked statically and could not load what a host sends; "
                     "`edgellm tune` brings one that is linked dynamically, which Android cannot run");
}
#endif
