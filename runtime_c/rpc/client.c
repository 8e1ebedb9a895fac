#include "posix.h"

#include "client.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "board.h"
#include "error.h"
#include "fpu.h"
#include "gpu_trial.h"
#include "library.h"
#include "memory.h"
#include "socket.h"
#include "watch.h"

enum { greeting_bytes = 512, greeting_s = 10, list_bytes = 1 << 16 };

typedef struct process {
    const rpc_client_options *options;
    unsigned n_loaded;
#ifdef ELLM_VULKAN
    rpc_gpu_trial *trial;
#endif
    rpc_session session;
} process;

/* ---- files: the process stands in its own folder ---- */

static ellm_status fail(ellm_error *error, const char *name) {
    return ellm_fail(error, ELLM_IO, "%s: %s", name, strerror(errno));
}

static ellm_status file_write(void *user, const char *name, const void *data, size_t n, ellm_error *error) {
    (void)user;
    unlink(name); /* a library that is loaded keeps its own file */
    int file = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    const char *at = data;
    ssize_t part = 0;
    while (file >= 0 && n > 0 && ((part = write(file, at, n)) > 0 || errno == EINTR)) {
        at += part > 0 ? part : 0;
        n -= part > 0 ? (size_t)part : 0;
    }
    ellm_status status = file < 0 || n > 0 ? fail(error, name) : ELLM_OK;
    if (file >= 0) {
        close(file);
    }
    return status;
}

static ellm_status file_read(void *user, const char *name, char **data, size_t *n, ellm_error *error) {
    (void)user;
    struct stat facts;
    int file = open(name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0 || fstat(file, &facts) != 0) {
        ellm_status status = fail(error, name);
        if (file >= 0) {
            close(file);
        }
        return status;
    }
    size_t cap = facts.st_size > 0 ? (size_t)facts.st_size : 0;
    *data = cap <= RPC_FRAME_BYTES ? malloc(cap + 1) : NULL;
    *n = 0;
    ssize_t part = 0;
    while (*data != NULL && *n < cap && (part = read(file, *data + *n, cap - *n)) > 0) {
        *n += (size_t)part;
    }
    close(file);
    if (*data == NULL || part < 0) {
        free(*data);
        return ellm_fail(error, ELLM_IO, "%s: it cannot be read, or is larger than %d bytes", name,
                         (int)RPC_FRAME_BYTES);
    }
    return ELLM_OK;
}

static void file_remove(void *user, const char *name) {
    (void)user;
    unlink(name);
}

static ellm_status file_list(void *user, char **names, size_t *n, ellm_error *error) {
    (void)user;
    DIR *folder = opendir(".");
    *names = folder == NULL ? NULL : malloc(list_bytes);
    *n = 0;
    if (*names == NULL) {
        if (folder != NULL) {
            closedir(folder);
        }
        return fail(error, "listdir");
    }
    for (struct dirent *each; (each = readdir(folder)) != NULL;) {
        size_t length = strlen(each->d_name);
        if (each->d_name[0] != '.' && *n + length + 1 <= list_bytes) {
            if (*n > 0) {
                (*names)[(*n)++] = ',';
            }
            memcpy(*names + *n, each->d_name, length);
            *n += length;
        }
    }
    closedir(folder);
    return ELLM_OK;
}

/* The loader takes a name it has seen for the library it has loaded, so every load gets a name of its own. */
static void *library_open(void *user, const char *name, ellm_error *error) {
    process *p = user;
    char path[32];
    snprintf(path, sizeof path, "./.loaded-%u", p->n_loaded++);
    if (link(name, path) != 0) {
        fail(error, name);
        return NULL;
    }
    void *library = ellm_rpc_library_open(path, error);
    unlink(path);
    return library;
}

/* ---- the rest of what a session needs ---- */

static bool read_socket(void *user, void *data, size_t n) {
    return ellm_rpc_receive(((process *)user)->options->socket, data, n);
}

static bool write_socket(void *user, const rpc_span spans[2]) {
    return ellm_rpc_send(((process *)user)->options->socket, spans);
}

static void describe(void *user, char *text, size_t n) {
    const process *p = user;
    ellm_rpc_describe("", p->options->cores, p->options->n_threads, text, n);
}

static void observe(void *user, char *text, size_t n) {
    ellm_rpc_observe("", ((process *)user)->options->cores, text, n);
}

static void pause_ms(int32_t ms) {
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* Three quarters of what is free, and what an address can hold. */
static uint64_t most_memory(void) {
    uint64_t most = ellm_available_bytes() / 4 * 3, addressable = (uint64_t)SIZE_MAX / 4;
    return most < addressable ? most : addressable;
}

#ifdef ELLM_VULKAN
static ellm_status gpu_open(void *user, const char *plan, const char *modules, int32_t position, char *text, size_t n,
                            ellm_error *error) {
    process *p = user;
    ellm_rpc_gpu_close(p->trial); /* memory first: the next one may need it */
    return ellm_rpc_gpu_open(plan, modules, position, most_memory(), &p->trial, text, n, error);
}

static ellm_status gpu_time(void *user, int64_t index, int32_t repeat, int32_t min_repeat_ms, double *seconds,
                            ellm_error *error) {
    process *p = user;
    return p->trial == NULL ? ellm_fail(error, ELLM_USAGE, "no GPU was opened")
                            : ellm_rpc_gpu_time(p->trial, index, repeat, min_repeat_ms, seconds, error);
}
#endif

/* ---- from the fork to the session ---- */

static void limit_time(double seconds) {
    struct itimerval timer = {{0}, {0}};
    if (seconds > 0 && seconds < 1e8) {
        timer.it_value.tv_sec = (time_t)seconds;
        timer.it_value.tv_usec = (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6);
        timer.it_value.tv_usec += timer.it_value.tv_sec == 0 && timer.it_value.tv_usec == 0;
    }
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* Terminal and agent must not be disturbed, and the agent's fate is ours. */
static void settle(const rpc_client_options *options) {
    sigset_t none;
    struct rlimit no_core = {0, 0};
    int yes = 1;
    sigemptyset(&none);
    signal(SIGALRM, SIG_DFL);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for the agent */
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setrlimit(RLIMIT_CORE, &no_core);
    int first_to_die = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (first_to_die >= 0) {
        (void)!write(first_to_die, "1000", 4);
        close(first_to_die);
    }
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nothing >= 0) {
        dup2(nothing, STDIN_FILENO);
        dup2(nothing, STDOUT_FILENO); /* the agent's output is for its own reports */
        close(nothing);
    }
    setsockopt(options->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (chdir(options->folder) != 0) {
        _exit(1);
    }
}

/* Equal, in a time that depends on nothing but n. */
static bool is_same(const char *a, const char *b, size_t n) {
    unsigned difference = 0;
    for (size_t i = 0; i < n; i++) {
        difference |= (unsigned)(unsigned char)(a[i] ^ b[i]);
    }
    return difference == 0;
}

/* Reads "client:<key>[ -timeout=<seconds>]". False: no client of ours. */
static bool greet(const rpc_client_options *options, double *seconds) {
    static const char prefix[] = "client:", suffix[] = " -timeout=";
    char text[greeting_bytes + 1];
    int32_t magic, n;
    *seconds = 0;
    if (!ellm_rpc_receive(options->socket, &magic, sizeof magic) || magic != RPC_MAGIC
        || !ellm_rpc_receive(options->socket, &n, sizeof n) || n < 0 || n > greeting_bytes
        || !ellm_rpc_receive(options->socket, text, (size_t)n)) {
        return false;
    }
    text[n] = '\0';
    char *option = strstr(text, suffix);
    if (option != NULL) {
        double value = strtod(option + strlen(suffix), NULL);
        *seconds = value > 0 ? value : 0;
        *option = '\0';
    }
    size_t length = strlen(text), expected = strlen(options->key);
    if (length == strlen(prefix) + expected && memcmp(text, prefix, strlen(prefix)) == 0
        && is_same(text + strlen(prefix), options->key, expected)) {
        return true;
    }
    magic = RPC_MISMATCH;
    ellm_rpc_send(options->socket, (rpc_span[2]){{&magic, sizeof magic}});
    return false;
}

static bool accept_client(const rpc_client_options *options) {
    char text[greeting_bytes + 8];
    int32_t head[2] = {RPC_MAGIC, snprintf(text, sizeof text, "server:%s", options->name)};
    return ellm_rpc_send(options->socket, (rpc_span[2]){{head, sizeof head}, {text, (size_t)head[1]}});
}

_Noreturn void ellm_rpc_client_run(const rpc_client_options *options, rpc_client_shared *shared) {
    struct flock turn = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    double seconds;
    settle(options);
    limit_time(greeting_s);
    if (!greet(options, &seconds)) {
        _exit(0);
    }
    limit_time(0);
    while (fcntl(options->turn, F_SETLKW, &turn) != 0) { /* until whoever is served has ended */
        if (errno != EINTR) {
            _exit(1);
        }
    }
    atomic_store(&shared->accepted, 1);
    if (options->longest_session_s > 0 && (seconds <= 0 || seconds > options->longest_session_s)) {
        seconds = options->longest_session_s;
    }
    limit_time(seconds);
    process *p = calloc(1, sizeof *p);
    if (p == NULL || !accept_client(options)) {
        _exit(0);
    }
    p->options = options;
    ellm_rpc_library_init(options->cores, options->n_threads);
    ellm_fpu_enter();
    rpc_outside outside = {
        .user = p,
        .read = read_socket,
        .write = write_socket,
        .file_write = file_write,
        .file_read = file_read,
        .file_remove = file_remove,
        .file_list = file_list,
        .library_open = library_open,
        .library_find = ellm_rpc_library_find,
        .library_close = ellm_rpc_library_close,
        .raised = ellm_rpc_library_raised,
        .now_ns = ellm_now_ns,
        .pause_ms = pause_ms,
        .describe = describe,
        .observe = observe,
        .set_threads = ellm_rpc_library_set_threads,
#ifdef ELLM_VULKAN
        .gpu_open = gpu_open,
        .gpu_time = gpu_time,
#endif
        .memory_bytes = most_memory(),
    };
    ellm_rpc_session_init(&p->session, &outside);
    ellm_rpc_session_serve(&p->session);
    ellm_rpc_session_free(&p->session);
    _exit(0);
}
