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
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "json.h"
#include "program.h"
#include "supervisor.h"

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
    bool runs = folder_is_supervised(folder, &lock);
    if (lock >= 0) {
        close(lock);
    }
    folder_state(folder, &b);
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
    int log = folder_open(folder, "log", O_RDONLY);
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
    if (!folder_lock(folder, &lock)) {
        return lock < 0 ? ellm_fail(error, ELLM_IO, "%.200s/lock: %s", folder, strerror(errno))
                        : ellm_fail(error, ELLM_BOARD_BUSY, "a server runs here already (process %d); stop it first",
                                    (int)folder_pid(lock));
    }
    (void)!ftruncate(lock, 0); /* the supervisor writes its own process id */
    if (pipe2(answer, O_CLOEXEC) != 0) {
        return ellm_fail(error, ELLM_IO, "a pipe: %s", strerror(errno));
    }
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        close(answer[0]);
        v.told = answer[1];
        supervisor_run(&v, lock);
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
    if (text[0] != '+') {
        (void)waitpid(pid, NULL, 0); /* then the lock is free again */
    }
    return text[0] == '+' ? print_state(folder) : why_not(folder, (int)strtol(text + 1, NULL, 10), error);
}

static ellm_status stop(const char *folder, ellm_error *error) {
    int lock;
    bool runs = folder_is_supervised(folder, &lock);
    pid_t pid = 0;
    double began = clock_ms();
    while (runs && flock(lock, LOCK_SH | LOCK_NB) != 0) {
        if (pid <= 1) { /* none yet: it is only just starting */
            pid = folder_pid(lock);
            (void)(pid > 1 && kill(pid, SIGTERM));
        }
        if (clock_ms() - began > most_stop_ms) {
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
    folder_state(folder, &b);
    (void)ellm_json_read(b.data, b.n, &region, ELLM_USAGE, "state", &state, NULL);
    (void)ellm_json_int(ellm_json_get(state, "starts"), 0, INT64_MAX, &n);
    *is_up = ellm_json_equals(ellm_json_get(state, "state"), "running");
    ellm_region_free(&region);
    buffer_free(&b);
    return n;
}

static ellm_status restart(const char *folder, ellm_error *error) {
    int lock;
    bool runs = folder_is_supervised(folder, &lock), is_up = false;
    pid_t pid = runs ? folder_pid(lock) : 0;
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
