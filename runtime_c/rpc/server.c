#include "posix.h"

#include "server.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "error.h"
#include "tracker.h"
#include "wire.h"

enum { most_clients = 32, backlog = 16 };

typedef struct client {
    pid_t pid; /* 0: free */
    int socket;
    char folder[4096];
} client;

typedef struct agent {
    const rpc_serve_options *options;
    int listener, signals, turn;
    client clients[most_clients];
    rpc_client_shared *shared; /* one per client; its process writes, we read */
    rpc_tracker tracker;
    bool is_offered; /* the tracker knows a key of ours that nobody has used */
    unsigned n_sessions;
    bool stops;
} agent;

/* ---- sessions ---- */

static void remove_folder(const char *path) {
    DIR *folder = opendir(path);
    int number = folder == NULL ? -1 : dirfd(folder);
    if (number >= 0) {
        for (struct dirent *each; (each = readdir(folder)) != NULL;) {
            unlinkat(number, each->d_name, 0); /* there are no folders within; . and .. stay */
        }
    }
    if (folder != NULL) {
        closedir(folder);
    }
    rmdir(path);
}

static void begin(agent *a, int connection) {
    int slot = 0;
    while (a->clients[slot].pid != 0) {
        slot++;
    }
    client *c = &a->clients[slot];
    rpc_client_shared *shared = &a->shared[slot];
    int n = snprintf(c->folder, sizeof c->folder, "%s/%u", a->options->folder, ++a->n_sessions);
    if (n < 0 || (size_t)n >= sizeof c->folder || mkdir(c->folder, 0700) != 0) {
        close(connection);
        return;
    }
    atomic_store(&shared->accepted, 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(a->listener);
        close(a->signals);
        ellm_rpc_tracker_close(&a->tracker);
        for (int i = 0; i < most_clients; i++) {
            if (a->clients[i].pid != 0) {
                close(a->clients[i].socket);
            }
        }
        rpc_client_options options = {
            .socket = connection,
            .turn = a->turn,
            .key = a->tracker.host != NULL ? a->tracker.key : a->options->key,
            .name = a->tracker.host != NULL ? a->tracker.queue : a->options->key,
            .folder = c->folder,
            .cores = &a->options->cores,
            .n_threads = a->options->n_threads,
            .longest_session_s = a->options->longest_session_s,
        };
        ellm_rpc_client_run(&options, shared);
    }
    if (pid < 0) {
        rmdir(c->folder);
        close(connection);
        return;
    }
    c->pid = pid;
    c->socket = connection;
}

/* Tells a client why its session ended, as the answer to whatever it waits for. */
static void tell(int connection, const char *text) {
    rpc_writer writer;
    size_t n = strlen(text);
    ellm_rpc_begin(&writer, RPC_EXCEPTION, 1);
    ellm_rpc_put_i32(&writer, RPC_TEXT);
    ellm_rpc_put_u64(&writer, n);
    ellm_rpc_end(&writer, n);
    if (send(connection, writer.data, writer.n, MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE) == (ssize_t)writer.n) {
        (void)send(connection, text, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

static void end(agent *a, int slot, int status) {
    client *c = &a->clients[slot];
    bool was_accepted = atomic_load(&a->shared[slot].accepted) != 0;
    char text[256] = "", how[64] = "closed";
    if (WIFSIGNALED(status)) {
        int number = WTERMSIG(status);
        if (number == SIGALRM) {
            snprintf(how, sizeof how, "timeout");
            snprintf(text, sizeof text,
                     "RPCSessionTimeoutError: the session's time is over; ask for more with session_timeout");
        } else {
            snprintf(how, sizeof how, "crashed: signal %d", number);
            snprintf(text, sizeof text, "the session's process was ended by signal %d (%s); what was uploaded crashed",
                     number, strsignal(number));
        }
    } else if (!was_accepted) {
        snprintf(how, sizeof how, "refused");
    } else if (WEXITSTATUS(status) != 0) {
        snprintf(how, sizeof how, "crashed: exit %d", WEXITSTATUS(status));
        snprintf(text, sizeof text, "what was uploaded ended the session's process with status %d",
                 WEXITSTATUS(status));
    }
    if (was_accepted && text[0] != '\0') {
        tell(c->socket, text);
    }
    shutdown(c->socket, SHUT_RDWR);
    close(c->socket);
    remove_folder(c->folder);
    if (was_accepted) {
        a->is_offered = false; /* its key is used up */
    }
    a->options->ended(a->options->user, (int)c->pid, how);
    c->pid = 0;
}

static void reap(agent *a) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        for (int i = 0; i < most_clients; i++) {
            if (a->clients[i].pid == pid) {
                end(a, i, status);
            }
        }
    }
}

static int n_clients(const agent *a) {
    int n = 0;
    for (int i = 0; i < most_clients; i++) {
        n += a->clients[i].pid != 0;
    }
    return n;
}

static bool is_serving(const agent *a) {
    for (int i = 0; i < most_clients; i++) {
        if (a->clients[i].pid != 0 && atomic_load(&a->shared[i].accepted) != 0) {
            return true;
        }
    }
    return false;
}

/* ---- the agent ---- */

static ellm_status open_listener(agent *a, uint16_t *port, ellm_error *error) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(a->options->port)};
    socklen_t n = sizeof address;
    int yes = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK); /* uploaded code runs: never on a network */
    a->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (a->listener < 0 || setsockopt(a->listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0
        || bind(a->listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(a->listener, backlog) != 0
        || getsockname(a->listener, (struct sockaddr *)&address, &n) != 0) {
        return ellm_fail(error, ELLM_IO, "port %u of the loopback: %s", (unsigned)a->options->port, strerror(errno));
    }
    *port = ntohs(address.sin_port);
    return ELLM_OK;
}

static ellm_status open_agent(agent *a, uint16_t *port, ellm_error *error) {
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGINT);
    ellm_status status = open_listener(a, port, error);
    if (status != ELLM_OK) {
        return status;
    }
    a->shared = mmap(NULL, most_clients * sizeof *a->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    a->turn = memfd_create("edgellm-rpc-turn", MFD_CLOEXEC);
    if (a->shared == MAP_FAILED || a->turn < 0) {
        a->shared = NULL;
        return ellm_fail(error, ELLM_NO_MEMORY, "shared memory: %s", strerror(errno));
    }
    a->signals = sigprocmask(SIG_BLOCK, &watched, NULL) != 0 ? -1 : signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    if (a->signals < 0) {
        return ellm_fail(error, ELLM_IO, "signals: %s", strerror(errno));
    }
    return ELLM_OK;
}

static void read_signals(agent *a) {
    struct signalfd_siginfo info;
    while (read(a->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        a->stops = a->stops || info.ssi_signo != SIGCHLD;
    }
    reap(a);
}

/* What is left of the input tells nothing; its end tells us to stop. */
static void read_input(agent *a) {
    char waste[256];
    ssize_t n = read(a->options->input, waste, sizeof waste);
    a->stops = a->stops || n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

/* Keeps the agent in the tracker's queue while nobody is served. A tracker that is away is asked again later. */
static void keep_offered(agent *a) {
    bool lost = false;
    if (a->tracker.host == NULL || is_serving(a)) {
        return;
    }
    if (a->is_offered && (ellm_rpc_tracker_poll(&a->tracker, &lost, NULL) != ELLM_OK || lost)) {
        a->is_offered = false;
    }
    if (!a->is_offered) {
        a->is_offered = ellm_rpc_tracker_offer(&a->tracker, NULL) == ELLM_OK;
    }
}

static void serve(agent *a) {
    while (!a->stops) {
        struct pollfd files[] = {
            {.fd = a->signals, .events = POLLIN},
            {.fd = n_clients(a) < most_clients ? a->listener : -1, .events = POLLIN},
            {.fd = a->options->input, .events = POLLIN},
        };
        if (!a->is_offered) {
            keep_offered(a);
        }
        int n = poll(files, 3, a->tracker.host != NULL ? RPC_TRACKER_POLL_MS : -1);
        if (n <= 0) {
            if (n == 0) {
                keep_offered(a);
            }
            continue;
        }
        if (files[0].revents != 0) {
            read_signals(a);
        }
        if (files[1].revents != 0) {
            int connection = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC);
            if (connection >= 0) {
                begin(a, connection);
            }
        }
        if (files[2].revents != 0) {
            read_input(a);
        }
    }
}

static void close_agent(agent *a) {
    for (int i = 0; i < most_clients; i++) {
        if (a->clients[i].pid != 0) {
            int status;
            kill(a->clients[i].pid, SIGKILL);
            while (waitpid(a->clients[i].pid, &status, 0) < 0 && errno == EINTR) {
            }
            tell(a->clients[i].socket, "the agent was stopped");
            close(a->clients[i].socket);
            remove_folder(a->clients[i].folder);
            a->options->ended(a->options->user, (int)a->clients[i].pid, "stopped");
        }
    }
    ellm_rpc_tracker_close(&a->tracker);
    if (a->shared != NULL) {
        munmap(a->shared, most_clients * sizeof *a->shared);
    }
    for (int i = 0; i < 3; i++) {
        int file = (int[]){a->listener, a->signals, a->turn}[i];
        if (file >= 0) {
            close(file);
        }
    }
}

ellm_status ellm_rpc_serve(const rpc_serve_options *options, ellm_error *error) {
    agent *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the agent");
    }
    a->options = options;
    a->listener = a->signals = a->turn = a->tracker.socket = -1;
    uint16_t port = 0;
    ellm_status status = open_agent(a, &port, error);
    if (status == ELLM_OK && options->tracker_host != NULL) {
        a->tracker.host = options->tracker_host;
        a->tracker.port = options->tracker_port;
        a->tracker.queue = options->queue;
        a->tracker.own_port = port;
        status = ellm_rpc_tracker_offer(&a->tracker, error);
        a->is_offered = status == ELLM_OK;
    }
    if (status == ELLM_OK) {
        options->ready(options->user, port);
        serve(a);
    }
    close_agent(a);
    free(a);
    return status;
}
