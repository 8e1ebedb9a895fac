/* The supervisor: starts the server, hears what it tells service managers, starts it again when it ends or hangs. */
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "json.h"
#include "program.h"
#include "supervisor.h"

/* ---- the folder ---- */

int folder_open(const char *folder, const char *name, int flags) {
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return open(path, flags | O_CLOEXEC, 0600);
}

/* Writes FOLDER/state in one step. */
static void write_state(const supervisor *v, const char *state) {
    char from[PATH_MAX + 16], to[PATH_MAX + 16];
    buffer b = {0};
    buffer_print(&b, "{\"state\":\"%s\",\"pid\":%d,\"server\":%d,\"starts\":%u%s}\n", state, (int)getpid(),
                 (int)v->server, v->n_starts, v->where);
    int file = folder_open(v->folder, "state.new", O_WRONLY | O_CREAT | O_TRUNC);
    bool good = file >= 0 && write(file, b.data, b.n) == (ssize_t)b.n;
    if (file >= 0) {
        close(file);
    }
    snprintf(from, sizeof from, "%s/state.new", v->folder);
    snprintf(to, sizeof to, "%s/state", v->folder);
    (void)(good && rename(from, to) == 0);
    buffer_free(&b);
}

bool folder_lock(const char *folder, int *file) {
    *file = folder_open(folder, "lock", O_RDWR | O_CREAT);
    bool held = *file >= 0 && flock(*file, LOCK_EX | LOCK_NB) == 0;
    for (int i = 0; i < 10 && *file >= 0 && !held; i++) { /* somebody may only be looking */
        poll(NULL, 0, 20);
        held = flock(*file, LOCK_EX | LOCK_NB) == 0;
    }
    return held;
}

bool folder_is_supervised(const char *folder, int *file) {
    *file = folder_open(folder, "lock", O_RDWR);
    return *file >= 0 && flock(*file, LOCK_SH | LOCK_NB) != 0;
}

pid_t folder_pid(int lock) {
    char text[32] = "";
    (void)!pread(lock, text, sizeof text - 1, 0);
    return (pid_t)strtol(text, NULL, 10);
}

void folder_state(const char *folder, buffer *b) {
    int file = folder_open(folder, "state", O_RDONLY);
    buffer_reserve(b, 4096);
    ssize_t n = file >= 0 ? read(file, b->data, 4096) : -1;
    if (file >= 0) {
        close(file);
    }
    b->n = n > 0 ? (size_t)n : 0;
    b->data[b->n] = '\0';
}

/* ---- the server ---- */

static void tell(supervisor *v, const char *text, size_t n) {
    if (!v->has_told) {
        v->has_told = true;
        (void)!write(v->told, text, n);
        close(v->told);
    }
}

/* What a log that grew too long says goes to FOLDER/log.old. The server has the file open, and appends to it. */
static void trim_log(const supervisor *v) {
    int log = folder_open(v->folder, "log", O_RDWR), old = -1;
    off_t n = log >= 0 ? lseek(log, 0, SEEK_END) : 0, from = 0;
    if (n > log_bytes) {
        old = folder_open(v->folder, "log.old", O_WRONLY | O_CREAT | O_TRUNC);
        (void)!(old >= 0 ? sendfile(old, log, &from, (size_t)n) : 0);
        (void)!ftruncate(log, 0);
    }
    if (old >= 0) {
        close(old);
    }
    if (log >= 0) {
        close(log);
    }
}

static void start_server(supervisor *v) {
    int out[2];
    trim_log(v);
    int log = folder_open(v->folder, "log", O_WRONLY | O_CREAT | O_APPEND);
    v->n_starts++;
    v->began = v->signs = clock_ms();
    v->is_ready = false;
    v->due = v->began + start_ms;
    buffer_clear(&v->line);
    if (pipe2(out, O_CLOEXEC) != 0) {
        if (log >= 0) {
            close(log);
        }
        v->due = v->began + most_pause_ms;
        return;
    }
    v->server = fork();
    if (v->server == 0) {
        sigset_t none;
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* a server that nobody looks after would keep its port for ever */
        signal(SIGPIPE, SIG_DFL);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        dup2(out[1], STDOUT_FILENO);
        if (log >= 0) {
            dup2(log, STDERR_FILENO);
        }
        execv(v->program, v->arguments);
        _exit(127);
    }
    close(out[1]);
    if (log >= 0) {
        close(log);
    }
    if (v->ready >= 0) {
        close(v->ready);
    }
    v->ready = out[0];
    if (v->server < 0) {
        v->server = 0;
        v->due = v->began + most_pause_ms;
    }
    write_state(v, "starting");
}

/* The server's first line says where it listens. */
static void read_ready(supervisor *v) {
    char piece[512];
    ssize_t n = read(v->ready, piece, sizeof piece);
    if (n <= 0) {
        close(v->ready);
        v->ready = -1;
        return;
    }
    buffer_put(&v->line, piece, v->line.n < 4096 ? (size_t)n : 0);
    ellm_region region;
    ellm_json *line = NULL;
    int64_t port = 0;
    ellm_region_init(&region, 1 << 20);
    if (ellm_json_read(v->line.data, v->line.n, &region, ELLM_USAGE, "ready", &line, NULL) == ELLM_OK
        && ellm_json_int(ellm_json_get(line, "port"), 1, 65535, &port)) {
        const char *address = ellm_json_text(ellm_json_get(line, "address"), 64);
        snprintf(v->where, sizeof v->where, ",\"address\":\"%s\",\"port\":%d", address != NULL ? address : "",
                 (int)port);
        if (v->is_ready) {
            write_state(v, "running");
        }
    }
    ellm_region_free(&region);
}

/* What the server tells a service manager. */
static void read_notify(supervisor *v) {
    static const char more_time[] = "EXTEND_TIMEOUT_USEC=";
    char text[256];
    ssize_t n = recv(v->notify, text, sizeof text - 1, MSG_DONTWAIT);
    text[n > 0 ? n : 0] = '\0';
    if (strstr(text, "READY=1") != NULL) {
        v->is_ready = true;
        write_state(v, "running");
    }
    if (n > 0) {
        v->signs = clock_ms();
        trim_log(v);
    }
    if (v->is_ready && !v->stops && !v->restarts) {
        v->due = v->signs + watchdog_s * 1e3;
    }
    const char *more = strstr(text, more_time);
    if (more != NULL) { /* it ends, and knows how long that may take */
        v->due = v->signs + strtod(more + sizeof more_time - 1, NULL) / 1e3;
    }
}

static void end_server(supervisor *v, int number) {
    if (v->server > 0) {
        kill(v->server, number);
        v->due = clock_ms() + (number == SIGKILL ? 1000 : stop_ms);
    }
}

/* The server ended by itself, or because it was told to. */
static void after_end(supervisor *v, int status) {
    double now = clock_ms();
    bool was_good = v->is_ready && now - v->began > good_run_ms;
    v->server = 0;
    if (!v->has_told && !v->is_ready && !v->restarts) { /* it never started: its error is the answer */
        int code = WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : (int)ELLM_INTERNAL;
        char text[32];
        snprintf(text, sizeof text, "!%d\n", code);
        tell(v, text, strlen(text));
        v->stops = true;
        return;
    }
    v->pause_ms = v->restarts || was_good || v->pause_ms <= 0 ? least_pause_ms : v->pause_ms * 2;
    v->pause_ms = v->pause_ms > most_pause_ms ? most_pause_ms : v->pause_ms;
    v->due = v->restarts ? now : now + v->pause_ms;
    v->restarts = false;
    write_state(v, "waiting");
}

static void read_signals(supervisor *v) {
    struct signalfd_siginfo info;
    while (read(v->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD) {
            int status;
            for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
                if (pid == v->server) {
                    after_end(v, status);
                }
            }
        } else if (info.ssi_signo == SIGHUP && !v->stops) {
            v->restarts = v->server > 0;
            v->due = v->server > 0 ? v->due : clock_ms();
            end_server(v, SIGTERM);
        } else if (info.ssi_signo != SIGHUP) {
            v->stops = true;
            end_server(v, SIGTERM);
        }
    }
}

static void act(supervisor *v) {
    if (v->server == 0) {
        start_server(v);
    } else {
        end_server(v, SIGKILL); /* no sign of life, or it does not end */
    }
}

static void supervise(supervisor *v) {
    start_server(v);
    while (!v->stops || v->server > 0) {
        struct pollfd files[] = {{.fd = v->signals, .events = POLLIN},
                                 {.fd = v->notify, .events = POLLIN},
                                 {.fd = v->ready, .events = POLLIN}};
        double left = v->due - clock_ms();
        int n = poll(files, 3, left > 0 ? (int)left + 1 : 0);
        if (n > 0 && files[2].revents != 0) {
            read_ready(v);
        }
        if (n > 0 && files[1].revents != 0) {
            read_notify(v);
        }
        if (n > 0 && files[0].revents != 0) {
            read_signals(v);
        }
        if (v->is_ready && v->where[0] != '\0') {
            tell(v, "+\n", 2);
        }
        if (clock_ms() > v->due && !(v->stops && v->server == 0)) {
            act(v);
        }
    }
    write_state(v, "stopped");
}

_Noreturn void supervisor_run(supervisor *v, int lock) {
    sigset_t watched;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t n = sizeof address;
    char text[128];
    setsid();
    signal(SIGPIPE, SIG_IGN); /* whoever started it may have gone before it can be told */
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < 3 && nothing >= 0; i++) {
        dup2(nothing, i);
    }
    (void)!chdir("/");
    int length = snprintf(text, sizeof text, "%d\n", (int)getpid());
    (void)!(ftruncate(lock, 0) == 0 && pwrite(lock, text, (size_t)length, 0) == length);
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGHUP);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    v->signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    v->notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    /* The kernel picks a name in the abstract namespace. */
    bool good = v->signals >= 0 && v->notify >= 0
                && bind(v->notify, (const struct sockaddr *)&address, sizeof address.sun_family) == 0
                && getsockname(v->notify, (struct sockaddr *)&address, &n) == 0;
    size_t n_name = good ? n - offsetof(struct sockaddr_un, sun_path) : 0;
    good = good && n_name > 1 && n_name < sizeof text;
    if (good) {
        snprintf(text, sizeof text, "@%.*s", (int)n_name - 1, address.sun_path + 1);
        good = setenv("NOTIFY_SOCKET", text, 1) == 0;
        snprintf(text, sizeof text, "%lld", watchdog_s * 1000000LL);
        good = good && setenv("WATCHDOG_USEC", text, 1) == 0 && unsetenv("WATCHDOG_PID") == 0;
    }
    if (!good) {
        tell(v, "!99\n", 4);
        _exit(ELLM_INTERNAL);
    }
    supervise(v);
    _exit(0);
}
