#include "posix.h"

#include "serve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection.h"
#include "notify.h"
#include "program.h"
#include "sha256.h"

enum {
    backlog = 64,
    all_connections = SERVE_CONNECTIONS + SERVE_SPARE,
    accept_pause_ms = 1000,
    ending_ms = 20 * 1000,   /* beyond the grace, as service managers are told */
    keeping_ms = 140 * 1000, /* with sessions that go to an SD card */
};

typedef struct server {
    connection_shared shared;
    int listener, wake; /* wake: an eventfd; the batch and the signal handler write to it */
    connection connections[all_connections];
    int n_connections;
    double watchdog_ms, watchdog_due, accept_due; /* clock_ms */
    double stop_due;                              /* 0: nobody asked to stop */
} server;

/* A signal handler reaches nothing else. */
static volatile sig_atomic_t n_signals;
static volatile sig_atomic_t signal_wake = -1;

static void on_signal(int number) {
    const uint64_t one = 1;
    int saved = errno;
    n_signals = n_signals + 1;
    if (n_signals > 2) {
        _exit(128 + number);
    }
    (void)!write((int)signal_wake, &one, sizeof one);
    errno = saved;
}

/* ---- the listener ---- */

static bool is_loopback_address(const struct sockaddr_storage *address) {
    if (address->ss_family == AF_INET) {
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
    }
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr) != 0;
}

static ellm_status read_address(const serve_options *o, struct sockaddr_storage *address, socklen_t *n,
                                ellm_error *error) {
    const char *text = o->address != NULL ? o->address : "127.0.0.1";
    struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)address;
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(o->port);
        *n = sizeof *v4;
    } else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(o->port);
        *n = sizeof *v6;
    } else {
        return ellm_fail(error, ELLM_USAGE, "--listen wants an IPv4 or IPv6 address as in 127.0.0.1, not '%s'", text);
    }
    if (!is_loopback_address(address) && o->token == NULL && !o->is_open) {
        return ellm_fail(
            error, ELLM_USAGE,
            "--listen %s would serve everybody on the network: give --token-file FILE, or --open if that is "
            "what you want",
            text);
    }
    return ELLM_OK;
}

static ellm_status open_listener(server *v, ellm_error *error) {
    const serve_options *o = v->shared.options;
    struct sockaddr_storage address;
    socklen_t n = 0;
    int yes = 1;
    ellm_status status = read_address(o, &address, &n, error);
    if (status != ELLM_OK) {
        return status;
    }
    v->shared.is_local = o->token == NULL && is_loopback_address(&address);
    v->listener = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (v->listener < 0 || setsockopt(v->listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0
        || bind(v->listener, (const struct sockaddr *)&address, n) != 0 || listen(v->listener, backlog) != 0
        || getsockname(v->listener, (struct sockaddr *)&address, &n) != 0) {
        return ellm_fail(error, ELLM_IO, "%s port %u: %s%s", o->address != NULL ? o->address : "127.0.0.1",
                         (unsigned)o->port, strerror(errno), errno == EADDRINUSE ? "; --port chooses another one" : "");
    }
    char text[INET6_ADDRSTRLEN] = "";
    bool is_v4 = address.ss_family == AF_INET;
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)&address;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)&address;
    (void)inet_ntop(address.ss_family, is_v4 ? (const void *)&v4->sin_addr : (const void *)&v6->sin6_addr, text,
                    sizeof text);
    o->ready(o->user, text, ntohs(is_v4 ? v4->sin_port : v6->sin6_port));
    return ELLM_OK;
}

static void accept_all(server *v) {
    while (v->n_connections < all_connections) {
        int yes = 1, file = accept4(v->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (file < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                v->accept_due = clock_ms() + accept_pause_ms; /* it would be told again at once */
            }
            return;
        }
        (void)setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        v->shared.service->metrics.n_connections++;
        bool is_surplus = v->n_connections >= SERVE_CONNECTIONS;
        for (int i = 0; i < v->n_connections && is_surplus; i++) { /* one that only might be used again makes room */
            if (connection_is_spare(&v->connections[i])) {
                connection_close(&v->connections[i]);
                connection_move(&v->connections[i], &v->connections[--v->n_connections]);
                is_surplus = false;
            }
        }
        connection_open(&v->connections[v->n_connections++], file, &v->shared, is_surplus);
    }
}

/* ---- the loop ---- */

static void sweep(server *v) {
    for (int i = 0; i < v->n_connections;) {
        if (v->connections[i].state == GONE) {
            connection_move(&v->connections[i], &v->connections[--v->n_connections]);
        } else {
            i++;
        }
    }
}

/* Nobody new is let in; whoever waits for an answer gets it, if that does not take too long. */
static void begin_stop(server *v) {
    v->stop_due = clock_ms() + (n_signals > 1 ? 0 : v->shared.options->grace_ms);
    if (!v->shared.service->is_stopping) {
        v->shared.service->is_stopping = true;
        const serve_options *o = v->shared.options;
        char text[80];
        snprintf(text, sizeof text, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%.0f",
                 (o->grace_ms + (o->keep != NULL ? keeping_ms : ending_ms)) * 1e3);
        notify_send(text);
        close(v->listener);
        v->listener = -1;
    }
    for (int i = 0; i < v->n_connections; i++) {
        connection *c = &v->connections[i];
        if (connection_is_idle(c)) {
            connection_close(c);
        } else {
            c->reply.keep_alive = c->reply.keep_alive && c->state != ANSWERING;
        }
    }
    sweep(v);
}

static double earlier(double due, double other) {
    return other > 0 && other < due ? other : due;
}

/* Milliseconds until something has to be done without anybody asking; -1: never. */
static int patience(const server *v) {
    double never = 1e18, due = never;
    due = earlier(due, v->watchdog_due);
    due = earlier(due, v->accept_due);
    due = earlier(due, v->stop_due);
    for (int i = 0; i < v->n_connections; i++) {
        due = earlier(due, v->connections[i].deadline);
    }
    double left = due - clock_ms();
    return due >= never ? -1 : left < 0 ? 0 : left > 60000 ? 60000 : (int)left + 1;
}

static void feed_watchdog(server *v, double now) {
    batch_stats stats;
    if (v->watchdog_ms <= 0 || now < v->watchdog_due) {
        return;
    }
    v->watchdog_due = now + v->watchdog_ms;
    batch_get_stats(v->shared.service->batch, STUCK_MS, &stats);
    if (!stats.is_stuck) {
        notify_send("WATCHDOG=1");
    }
}

static void drain(int file) {
    uint64_t count;
    (void)!read(file, &count, sizeof count);
}

/* What is left of the input tells nothing; its end tells us to stop. */
static bool input_ended(void) {
    char waste[256];
    ssize_t n = read(STDIN_FILENO, waste, sizeof waste);
    return n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

static void serve(server *v) {
    enum { others = 3 };
    struct pollfd files[all_connections + others];
    int seen_signals = 0;
    bool reads = v->shared.options->is_attached;
    while (v->stop_due <= 0 || (v->n_connections > 0 && clock_ms() < v->stop_due)) {
        bool accepts = v->n_connections < all_connections && v->accept_due <= 0;
        int n = v->n_connections;
        files[0] = (struct pollfd){.fd = v->wake, .events = POLLIN};
        files[1] = (struct pollfd){.fd = accepts ? v->listener : -1, .events = POLLIN};
        files[2] = (struct pollfd){.fd = reads ? STDIN_FILENO : -1, .events = POLLIN};
        for (int i = 0; i < n; i++) {
            const connection *c = &v->connections[i];
            files[i + others] = (struct pollfd){.fd = c->socket, .events = connection_events(c)};
        }
        int ready = poll(files, (nfds_t)n + others, patience(v));
        double now = clock_ms();
        if (ready > 0 && files[0].revents != 0) {
            drain(v->wake);
        }
        for (int i = 0; i < n; i++) {
            connection *c = &v->connections[i];
            if (ready > 0 && files[i + others].revents != 0) {
                connection_handle(c, files[i + others].revents);
            } else if (ready > 0 && files[0].revents != 0) {
                connection_advance(c);
            }
            if (c->state != GONE && now > c->deadline) {
                connection_expire(c);
            }
        }
        sweep(v);
        v->accept_due = v->accept_due > 0 && now > v->accept_due ? 0 : v->accept_due;
        if (ready > 0 && files[1].revents != 0) {
            accept_all(v);
        }
        bool hangs_up = ready > 0 && files[2].revents != 0 && input_ended();
        reads = reads && !hangs_up;
        if (n_signals > seen_signals || hangs_up) {
            seen_signals = n_signals;
            begin_stop(v);
        }
        feed_watchdog(v, now);
    }
}

static void watch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

ellm_status ellm_serve(service *s, ellm_context *context, const serve_options *options, ellm_error *error) {
    server *v = calloc(1, sizeof *v);
    if (v == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the server");
    }
    v->shared = (connection_shared){.service = s, .options = options, .wants_token = options->token != NULL};
    if (options->token != NULL) {
        ellm_sha256 sha;
        ellm_sha256_init(&sha);
        ellm_sha256_update(&sha, options->token, strlen(options->token));
        ellm_sha256_hex(&sha, v->shared.token);
    }
    v->listener = -1;
    v->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    signal_wake = v->wake;
    ellm_status status = v->wake >= 0 ? ELLM_OK : ellm_fail(error, ELLM_IO, "eventfd: %s", strerror(errno));
    if (status == ELLM_OK) {
        const batch_options want = {
            .n_sessions = options->n_sessions, .n_waiting = options->n_waiting, .keep = options->keep, .wake = v->wake};
        status = batch_open(context, s->model, &want, &s->batch, error);
    }
    if (status == ELLM_OK) {
        watch_signals();
        status = open_listener(v, error);
    }
    if (status == ELLM_OK) {
        v->watchdog_ms = notify_watchdog_ms();
        v->watchdog_due = v->watchdog_ms > 0 ? clock_ms() : 0;
        notify_send("READY=1");
        serve(v);
    }
    signal_wake = -1; /* whoever asks again is told by the end */
    for (int i = 0; i < v->n_connections; i++) {
        connection_close(&v->connections[i]);
    }
    batch_close(s->batch);
    s->batch = NULL;
    for (int i = 0; i < 2; i++) {
        int file = i == 0 ? v->listener : v->wake;
        if (file >= 0) {
            close(file);
        }
    }
    free(v);
    return status;
}
