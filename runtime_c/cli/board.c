/* board: the host's side of a deployment, spoken over standard input and output, or one request from the command line.
 *
 * Each request is a line of words; the answer is a line of JSON, perhaps after lines {"progress":...}. The first one
 * that fails ends the conversation, with an error on standard error and its status as the exit code. */
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "board.h"

/* A host that is silent while somebody else waits has lost its connection, as far as we can tell. */
enum { silence_ms = 120000, polite_ms = 10000, lock_wait_ms = 20000, line_cap = 4096, most_words = 12, pace_ms = 500 };

/* ---- standard input and output ---- */

static struct {
    char data[1 << 16];
    size_t at, n;
} input;

/* Whether somebody waits for the lock: they hold this file's while they do. */
static bool is_wanted(void) {
    int file = open("lock.wanted", O_RDONLY | O_CLOEXEC);
    bool wanted = file >= 0 && flock(file, LOCK_SH | LOCK_NB) != 0;
    if (file >= 0) {
        close(file);
    }
    return wanted;
}

static ellm_status fill(ellm_error *error) {
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    int ready;
    double start = clock_ms();
    while ((ready = poll(&in, 1, 1000)) <= 0) {
        double silent_ms = clock_ms() - start;
        if (ready == 0 && (silent_ms > silence_ms || (silent_ms > polite_ms && is_wanted()))) {
            return ellm_fail(error, ELLM_CANCELLED, "the host said nothing for %.0f s", silent_ms / 1e3);
        }
        if (ready < 0 && errno != EINTR) {
            return ellm_fail(error, ELLM_IO, "standard input: %s", strerror(errno));
        }
    }
    ssize_t n;
    while ((n = read(STDIN_FILENO, input.data, sizeof input.data)) < 0 && errno == EINTR) {
    }
    input.at = 0;
    input.n = n > 0 ? (size_t)n : 0;
    return n < 0 ? ellm_fail(error, ELLM_IO, "standard input: %s", strerror(errno)) : ELLM_OK;
}

ellm_status board_read(void *data, size_t n_bytes, size_t *n_read, ellm_error *error) {
    ellm_status status = input.at == input.n ? fill(error) : ELLM_OK;
    size_t there = input.n - input.at;
    *n_read = status != ELLM_OK ? 0 : there < n_bytes ? there : n_bytes;
    memcpy(data, input.data + input.at, *n_read);
    input.at += *n_read;
    return status;
}

/* A line without its end; false at the end of the input. */
static ellm_status read_line(char line[line_cap], bool *there, ellm_error *error) {
    size_t n = 0;
    for (;;) {
        size_t got;
        char c;
        ellm_status status = board_read(&c, 1, &got, error);
        *there = got == 1;
        if (status != ELLM_OK || got == 0 || c == '\n') {
            line[n] = '\0';
            return status == ELLM_OK && got == 0 && n > 0
                       ? ellm_fail(error, ELLM_CANCELLED, "the connection ended in the middle of a request")
                       : status;
        }
        if (n + 1 == line_cap) {
            return ellm_fail(error, ELLM_USAGE, "a request of more than %d bytes", line_cap - 1);
        }
        line[n++] = c;
    }
}

void board_say(const buffer *line) {
    if (output_write(line->data, line->n, NULL) == ELLM_OK) {
        (void)output_write("\n", 1, NULL);
    }
}

void board_progress(const char *what, uint64_t done, uint64_t total) {
    static double said_ms;
    double now = clock_ms();
    if (now - said_ms < pace_ms) {
        return;
    }
    said_ms = now;
    buffer line = {0};
    buffer_print(&line, "{\"progress\":\"%s\",\"done\":%llu,\"total\":%llu}", what, (unsigned long long)done,
                 (unsigned long long)total);
    board_say(&line);
    buffer_free(&line);
}

/* ---- the lock ---- */

/* Held until this process ends, however it ends: the kernel lets go of it. Its file says who holds it. */
static ellm_status lock(ellm_error *error) {
    int file = open("lock", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) {
        return path_failed("lock", "cannot be written", error);
    }
    double start = clock_ms();
    int wanted = open("lock.wanted", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    bool asked = false;
    while (flock(file, LOCK_EX | LOCK_NB) != 0) {
        asked = asked || (wanted >= 0 && flock(wanted, LOCK_EX | LOCK_NB) == 0);
        if (errno != EWOULDBLOCK && errno != EINTR) {
            return path_failed("lock", "cannot be locked", error);
        }
        if (clock_ms() - start > lock_wait_ms) {
            char who[200] = "";
            ssize_t n = pread(file, who, sizeof who - 1, 0);
            who[n > 0 ? n : 0] = '\0';
            close(wanted);
            close(file);
            return ellm_fail(error, ELLM_BOARD_BUSY, "another deployment is under way here: %s; wait for it to end",
                             who);
        }
        poll(NULL, 0, 50);
    }
    if (wanted >= 0) {
        close(wanted);
    }
    char now[40] = "";
    time_t seconds = time(NULL);
    struct tm parts;
    if (gmtime_r(&seconds, &parts) != NULL) {
        (void)strftime(now, sizeof now, "%Y-%m-%d %H:%M:%S UTC", &parts);
    }
    if (ftruncate(file, 0) == 0) {
        (void)dprintf(file, "%.100s, process %ld, since %s by this board's clock", board_who, (long)getpid(), now);
    }
    return ELLM_OK; /* the descriptor stays open */
}

/* ---- requests ---- */

typedef ellm_status request_run(int n, char **words, ellm_error *error);
typedef struct request {
    const char *name;
    int least, most; /* words, the name included */
    bool changes;
    request_run *run;
    const char *form, *summary;
} request;

static const request requests[] = {
    {"survey", 1, 1, false, board_survey, "survey", "what is here: files, models, free space"},
    {"log", 1, 2, false, board_log, "log [N]", "the last N lines of the record (default 100)"},
    {"blocks", 2, 2, true, board_blocks, "blocks SHA256", "SHA-256 of each MB of an unfinished file"},
    {"receive", 4, 5, true, board_receive, "receive SHA256 BYTES OFFSET [x]", "takes a file from standard input"},
    {"promote", 3, most_words, true, board_promote, "promote NAME SHA256 [quick]",
     "verifies, tries and switches to it"},
    {"rollback", 2, 2, true, board_rollback, "rollback NAME", "back to the version before"},
    {"undeploy", 2, 2, true, board_undeploy, "undeploy NAME", "removes a model"},
    {"gc", 1, 1, true, board_gc, "gc", "removes what no model needs"},
};
enum { n_requests = sizeof requests / sizeof *requests };

static ellm_status answer(int n, char **words, bool *locked, ellm_error *error) {
    for (int i = 0; i < n_requests; i++) {
        const request *r = &requests[i];
        if (strcmp(words[0], r->name) == 0) {
            if (n < r->least || n > r->most) {
                return ellm_fail(error, ELLM_USAGE, "it is: %s", r->form);
            }
            ellm_status status = r->changes && !*locked ? lock(error) : ELLM_OK;
            *locked = *locked || (r->changes && status == ELLM_OK);
            return status == ELLM_OK ? r->run(n, words, error) : status;
        }
    }
    return ellm_fail(error, ELLM_USAGE, "'%.40s' is no request; `edgellm-rt board --help` lists them", words[0]);
}

/* The conversation: everything under one lock. */
static ellm_status converse(ellm_error *error) {
    static char line[line_cap];
    bool there, locked = true;
    ellm_status status = lock(error);
    if (status == ELLM_OK) {
        buffer hello = {0};
        buffer_print(&hello, "{\"ready\":1,\"hard_links\":%s}", store_can_link() ? "true" : "false");
        board_say(&hello);
        buffer_free(&hello);
    }
    while (status == ELLM_OK && (status = read_line(line, &there, error)) == ELLM_OK && there) {
        char *words[most_words], *rest = line, *word;
        int n = 0;
        while ((word = strtok_r(rest, " ", &rest)) != NULL) {
            if (n == most_words) {
                return ellm_fail(error, ELLM_USAGE, "a request of more than %d words", most_words);
            }
            words[n++] = word;
        }
        if (n > 0) {
            status = answer(n, words, &locked, error);
        }
    }
    if (status == ELLM_CANCELLED) {
        log_write("interrupted", "", "", status, error->text);
    }
    return status;
}

static void print_help(void) {
    printf("edgellm-rt board FOLDER [--as WHO] [REQUEST]: what is deployed on this machine, below FOLDER.\n\n"
           "This is what `edgellm deploy` and its kin talk to, and it can be used by hand:\n\n");
    for (int i = 0; i < n_requests; i++) {
        printf("  %-33s %s\n", requests[i].form, requests[i].summary);
    }
    printf("\nWithout a request, requests come on standard input, one a line, under one lock. Answers are JSON.\n");
}

ellm_status board_main(int argc, char **argv, ellm_error *error) {
    if (argc > 0 && (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0)) {
        print_help();
        return ELLM_OK;
    }
    if (argc < 1) {
        return ellm_fail(error, ELLM_USAGE, "which folder? `edgellm-rt board --help` explains");
    }
    const char *folder = argv[0];
    argc--;
    argv++;
    if (argc > 1 && strcmp(argv[0], "--as") == 0) {
        board_who = argv[1];
        argc -= 2;
        argv += 2;
    }
    signal(SIGPIPE, SIG_IGN); /* a promotion goes on when nobody listens any more */
    signal(SIGHUP, SIG_IGN);
    if (chdir(folder) != 0) {
        return path_failed(folder, "cannot be entered", error);
    }
    bool locked = false;
    if (argc > 0 && (strcmp(argv[0], "survey") == 0 || strcmp(argv[0], "log") == 0)) {
        return answer(argc, argv, &locked, error); /* reads, and makes nothing */
    }
    ellm_status status = folder_make(STORE, error);
    if (status == ELLM_OK) {
        status = folder_make(MODELS, error);
    }
    if (status != ELLM_OK) {
        return status;
    }
    return argc > 0 ? answer(argc, argv, &locked, error) : converse(error);
}
