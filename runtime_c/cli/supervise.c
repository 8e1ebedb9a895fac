/* supervise: keeps a server running in the background, where no systemd does. It starts it again when it ends or shows no
 * sign of life, and lets it be stopped, restarted (a new version of the model is in use) and looked at.
 *
 * One supervisor per folder: it holds the lock of FOLDER/lock, so that the process id in there is always its own.
 * FOLDER/state says in JSON how things are; FOLDER/log has what the server wrote to standard error. */
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
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "buffer.h"
#include "json.h"
#include "program.h"

enum {
    watchdog_s = 120,
    start_ms = 15 * 60 * 1000, /* weights may have to be hashed first */
    stop_ms = 40 * 1000,
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

/* ---- the folder ---- */

static int open_in(const char *folder, const char *name, int flags) {
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
    int file = open_in(v->folder, "state.new", O_WRONLY | O_CREAT | O_TRUNC);
    bool good = file >= 0 && write(file, b.data, b.n) == (ssize_t)b.n;
    if (file >= 0) {
        close(file);
    }
    snprintf(from, sizeof from, "%s/state.new", v->folder);
    snprintf(to, sizeof to, "%s/state", v->folder);
    (void)(good && rename(from, to) == 0);
    buffer_free(&b);
}

/* Whether nobody supervises in this folder: then its lock is the caller's, in *file. -1: there is no folder. */
static bool take_lock(const char *folder, int *file) {
    *file = open_in(folder, "lock", O_RDWR | O_CREAT);
    return *file >= 0 && flock(*file, LOCK_EX | LOCK_NB) == 0;
}

static pid_t read_pid(int lock) {
    char text[32] = "";
    (void)!pread(lock, text, sizeof text - 1, 0);
    return (pid_t)strtol(text, NULL, 10);
}

/* What FOLDER/state says; an empty text where there is none. */
static void read_state(const char *folder, buffer *b) {
    int file = open_in(folder, "state", O_RDONLY);
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

/* An end of a log that grew too long goes to FOLDER/log.old. */
static int open_log(const supervisor *v) {
    struct stat about;
    int log = open_in(v->folder, "log", O_WRONLY | O_CREAT | O_APPEND);
    if (log >= 0 && fstat(log, &about) == 0 && about.st_size > log_bytes) {
        char from[PATH_MAX + 16], to[PATH_MAX + 16];
        snprintf(from, sizeof from, "%s/log", v->folder);
        snprintf(to, sizeof to, "%s/log.old", v->folder);
        if (rename(from, to) == 0) {
            close(log);
            log = open_in(v->folder, "log", O_WRONLY | O_CREAT | O_APPEND);
        }
    }
    return log;
}

static void start_server(supervisor *v) {
    int out[2], log = open_log(v);
    v->n_starts++;
    v->began = v->signs = clock_ms();
    v->is_ready = false;
    v->due = v->began + start_ms;
    buffer_clear(&v->line);
    if (pipe2(out, O_CLOEXEC) != 0) {
        v->due = v->began + most_pause_ms;
        return;
    }
    v->server = fork();
    if (v->server == 0) {
        sigset_t none;
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
    char text[256];
    ssize_t n = recv(v->notify, text, sizeof text - 1, MSG_DONTWAIT);
    text[n > 0 ? n : 0] = '\0';
    if (strstr(text, "READY=1") != NULL) {
        v->is_ready = true;
        write_state(v, "running");
    }
    if (n > 0) {
        v->signs = clock_ms();
    }
    if (v->is_ready && !v->stops && !v->restarts) {
        v->due = v->signs + watchdog_s * 1e3;
    }
}

static void end_server(supervisor *v, int number) {
    if (v->server > 0) {
        kill(v->server, number);
        v->due = clock_ms() + (number == SIGKILL ? 1000 : stop_ms / 2);
    }
}

/* The server ended by itself, or because it was told to. */
static void after_end(supervisor *v, int status) {
    double now = clock_ms();
    bool was_good = v->is_ready && now - v->began > good_run_ms;
    v->server = 0;
    if (!v->has_told && !v->is_ready) { /* it never started: its error is the answer */
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : (int)ELLM_INTERNAL;
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

/* Detached from whoever started it, with the signals it lives by. Never returns. */
static _Noreturn void become_supervisor(supervisor *v, int lock) {
    sigset_t watched;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t n = sizeof address;
    char text[128];
    setsid();
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

/* ---- commands ---- */

/* A path that means the same from every folder; symbolic links stay, for what they point to changes. */
static ellm_status make_absolute(const char *path, char absolute[PATH_MAX], ellm_error *error) {
    char here[PATH_MAX] = "";
    bool good = path[0] == '/' || getcwd(here, sizeof here) != NULL;
    int n = snprintf(absolute, PATH_MAX, "%s%s%s", here, path[0] == '/' ? "" : "/", path);
    return good && n > 0 && n < PATH_MAX ? ELLM_OK : ellm_fail(error, ELLM_USAGE, "%.200s: the path is too long", path);
}

static ellm_status print_state(const char *folder) {
    buffer b = {0};
    int lock;
    bool runs = !take_lock(folder, &lock) && lock >= 0;
    if (lock >= 0) {
        close(lock);
    }
    read_state(folder, &b);
    char *brace = b.data[0] == '{' ? strrchr(b.data, '}') : NULL;
    if (!runs || brace == NULL) {
        printf("{\"running\":%s}\n", runs ? "true" : "false");
    } else {
        *brace = '\0';
        printf("%s,\"running\":true}\n", b.data);
    }
    buffer_free(&b);
    return ELLM_OK;
}

/* What the server's log says last, as the reason why it did not start. */
static ellm_status why_not(const char *folder, int code, ellm_error *error) {
    char text[2048] = "";
    int log = open_in(folder, "log", O_RDONLY);
    off_t end = log >= 0 ? lseek(log, 0, SEEK_END) : 0, from = end > 2047 ? end - 2047 : 0;
    ssize_t n = log >= 0 ? pread(log, text, sizeof text - 1, from) : 0;
    if (log >= 0) {
        close(log);
    }
    while (n > 0 && text[n - 1] == '\n') {
        text[--n] = '\0';
    }
    const char *line = strrchr(text, '\n');
    line = line != NULL ? line + 1 : text;
    const char *said = strstr(line, ": ") != NULL ? strstr(strstr(line, ": ") + 2, ": ") : NULL;
    return ellm_fail(error, (ellm_status)code, "the server did not start: %s", said != NULL ? said + 2 : line);
}

/* The folder, and the one around it. */
static ellm_status make_folder(const char *folder, ellm_error *error) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", folder);
    char *slash = strrchr(parent, '/');
    if (slash != NULL && slash > parent) {
        *slash = '\0';
        (void)mkdir(parent, 0755); /* where this fails, the next one says why */
    }
    if (mkdir(folder, 0755) != 0 && errno != EEXIST) {
        return ellm_fail(error, ELLM_IO, "%.200s: %s", folder, strerror(errno));
    }
    return ELLM_OK;
}

static ellm_status start(const char *folder, int argc, char **argv, ellm_error *error) {
    static supervisor v;
    static char directory[PATH_MAX];
    int lock, answer[2];
    v = (supervisor){.ready = -1, .signals = -1, .notify = -1};
    if (argc < 1 || argc > most_arguments) {
        return ellm_fail(error, ELLM_USAGE, "supervise FOLDER start DIR [options of serve]");
    }
    ssize_t n = readlink("/proc/self/exe", v.program, sizeof v.program - 1);
    snprintf(v.folder, sizeof v.folder, "%s", folder);
    ellm_status status = n > 0 ? make_absolute(argv[0], directory, error)
                               : ellm_fail(error, ELLM_IO, "/proc/self/exe: %s", strerror(errno));
    status = status == ELLM_OK ? make_folder(folder, error) : status;
    if (status != ELLM_OK) {
        return status;
    }
    static char serve[] = "serve";
    v.arguments[0] = v.program;
    v.arguments[1] = serve;
    v.arguments[2] = directory;
    memcpy(v.arguments + 3, argv + 1, (size_t)(argc - 1) * sizeof *argv);
    if (!take_lock(folder, &lock)) {
        return lock < 0 ? ellm_fail(error, ELLM_IO, "%.200s/lock: %s", folder, strerror(errno))
                        : ellm_fail(error, ELLM_BOARD_BUSY, "a server runs here already (process %d); stop it first",
                                    (int)read_pid(lock));
    }
    if (pipe2(answer, O_CLOEXEC) != 0) {
        return ellm_fail(error, ELLM_IO, "a pipe: %s", strerror(errno));
    }
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        close(answer[0]);
        v.told = answer[1];
        become_supervisor(&v, lock);
    }
    close(answer[1]);
    char text[32] = "";
    ssize_t got;
    while ((got = read(answer[0], text, sizeof text - 1)) < 0 && errno == EINTR) {
    }
    close(answer[0]);
    close(lock); /* the supervisor has it too */
    if (pid < 0 || got <= 0) {
        return ellm_fail(error, ELLM_INTERNAL, "the supervisor did not start");
    }
    return text[0] == '+' ? print_state(folder) : why_not(folder, (int)strtol(text + 1, NULL, 10), error);
}

static ellm_status stop(const char *folder, ellm_error *error) {
    int lock;
    bool runs = !take_lock(folder, &lock) && lock >= 0;
    pid_t pid = runs ? read_pid(lock) : 0;
    if (pid > 1) {
        kill(pid, SIGTERM);
    }
    double began = clock_ms();
    while (runs && flock(lock, LOCK_EX | LOCK_NB) != 0) {
        if (clock_ms() - began > stop_ms) {
            close(lock);
            return ellm_fail(error, ELLM_INTERNAL, "the supervisor (process %d) does not end", (int)pid);
        }
        poll(NULL, 0, 20);
    }
    if (lock >= 0) {
        close(lock);
    }
    printf("{\"running\":false,\"stopped\":%s}\n", runs ? "true" : "false");
    return ELLM_OK;
}

/* The number of starts so far, and whether the last one is up. */
static int64_t n_starts(const char *folder, bool *is_up) {
    buffer b = {0};
    ellm_region region;
    ellm_json *state = NULL;
    int64_t n = 0;
    ellm_region_init(&region, 1 << 20);
    read_state(folder, &b);
    (void)ellm_json_read(b.data, b.n, &region, ELLM_USAGE, "state", &state, NULL);
    (void)ellm_json_int(ellm_json_get(state, "starts"), 0, INT64_MAX, &n);
    *is_up = ellm_json_equals(ellm_json_get(state, "state"), "running");
    ellm_region_free(&region);
    buffer_free(&b);
    return n;
}

static ellm_status restart(const char *folder, ellm_error *error) {
    int lock;
    bool runs = !take_lock(folder, &lock), is_up = false;
    pid_t pid = runs && lock >= 0 ? read_pid(lock) : 0;
    if (lock >= 0) {
        close(lock);
    }
    if (pid <= 1) {
        return ellm_fail(error, ELLM_USAGE, "no server runs here");
    }
    int64_t before = n_starts(folder, &is_up);
    kill(pid, SIGHUP);
    double began = clock_ms();
    while (n_starts(folder, &is_up) <= before || !is_up) {
        if (clock_ms() - began > start_ms) {
            return ellm_fail(error, ELLM_INTERNAL, "the server did not come up again; its log is %.200s/log", folder);
        }
        poll(NULL, 0, 20);
    }
    return print_state(folder);
}

static void print_help(void) {
    printf("edgellm-rt supervise FOLDER COMMAND: keeps a server running in the background.\n\n"
           "  start DIR [options]  start it: the arguments of `edgellm-rt serve`\n"
           "  status               how it is, in JSON\n"
           "  restart              start it anew, as after a new version of the model\n"
           "  stop                 end it\n\n"
           "The server is started again when it ends or shows no sign of life for %d s, after 1 s to 60 s. FOLDER/log "
           "has\n"
           "what it says. Where there is systemd, a unit does the same and more: `edgellm service`.\n",
           (int)watchdog_s);
}

ellm_status supervise_main(int argc, char **argv, ellm_error *error) {
    char folder[PATH_MAX];
    if (argc > 0 && (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0)) {
        print_help();
        return ELLM_OK;
    }
    if (argc < 2) {
        return ellm_fail(error, ELLM_USAGE, "supervise FOLDER start|status|restart|stop; --help explains");
    }
    ellm_status status = make_absolute(argv[0], folder, error);
    if (status != ELLM_OK) {
        return status;
    }
    if (strcmp(argv[1], "start") == 0) {
        return start(folder, argc - 2, argv + 2, error);
    }
    if (argc == 2 && strcmp(argv[1], "status") == 0) {
        return print_state(folder);
    }
    if (argc == 2 && strcmp(argv[1], "restart") == 0) {
        return restart(folder, error);
    }
    if (argc == 2 && strcmp(argv[1], "stop") == 0) {
        return stop(folder, error);
    }
    return ellm_fail(error, ELLM_USAGE, "supervise has no '%.40s'; `edgellm-rt supervise --help` explains", argv[1]);
}
