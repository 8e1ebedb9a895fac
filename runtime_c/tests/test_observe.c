/* Watching steps: nothing that is computed changes, every step is told, and the commands built on it are sound. */
#include "posix.h"

#include <fcntl.h>

#include "check.h"
#include "model.h"
#include "observe.h"
#include "program.h"
#include "toy.h"

enum { n_tokens = 6, text_cap = 1 << 16 };
static const int32_t tokens[n_tokens] = {3, 8, 13, 18, 23, 28};

typedef struct watcher {
    int64_t ns[8];
    int n_calls, n_before, n_after, fails_at;
    int32_t rows[64], n[64];
    int64_t total_ns;
} watcher;

static ellm_status timed(void *user, const ellm_observed *now) {
    watcher *w = user;
    w->rows[w->n_calls] = ellm_observed_rows(now);
    w->n[w->n_calls++] = now->function->n;
    for (uint32_t i = 0; i < now->function->n_steps; i++) {
        CHECK(w->ns[i] >= 0);
        w->total_ns += w->ns[i];
    }
    return ELLM_OK;
}

static ellm_status stepped(void *user, const ellm_observed *now, uint32_t step, bool done) {
    watcher *w = user;
    CHECK(step < now->function->n_steps);
    CHECK(done ? w->n_before == w->n_after + 1 : w->n_before == w->n_after);
    w->n_after += done;
    w->n_before += !done;
    return w->fails_at > 0 && w->n_before == w->fails_at ? ELLM_CANCELLED : ELLM_OK;
}

static ellm_context *new_context(const ellm_model *model) {
    ellm_error error = {""};
    ellm_context *context = NULL;
    ellm_context_options options = {.context_length = 70, .n_threads_prefill = 2, .n_threads_decode = 2};
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_OK, error, "");
    return context;
}

static void test_observers(const ellm_model *model) {
    float plain[TOY_VOCAB], watched[TOY_VOCAB];
    ellm_context *context = new_context(model);
    CHECK(ellm_session_eval(context, 0, tokens, n_tokens, plain) == ELLM_OK);
    CHECK(ellm_observed_steps(ellm_model_plan(model)) == 2);

    watcher w = {.n_calls = 0};
    const ellm_observer times = {.user = &w, .ns = w.ns, .timed = timed};
    ellm_context_settle(context, true);
    ellm_context_observe(context, &times);
    CHECK(ellm_session_truncate(context, 0, 0) == ELLM_OK);
    CHECK(ellm_session_eval(context, 0, tokens, n_tokens - 3, watched) == ELLM_OK); /* 3 rows fit 4 */
    CHECK(w.n_calls == 2 && w.n[0] == 4 && w.rows[0] == 3 && w.n[1] == 1 && w.rows[1] == 1);
    CHECK(ellm_session_eval(context, 0, tokens + 3, 3, watched) == ELLM_OK);
    CHECK(memcmp(plain, watched, sizeof plain) == 0 && w.total_ns > 0);

    watcher steps = {.n_calls = 0};
    const ellm_observer each = {.user = &steps, .stepped = stepped};
    ellm_context_observe(context, &each);
    CHECK(ellm_session_truncate(context, 0, 0) == ELLM_OK);
    CHECK(ellm_session_eval(context, 0, tokens, 4, NULL) == ELLM_OK);
    CHECK(ellm_session_eval(context, 0, tokens + 4, 2, watched) == ELLM_OK);
    CHECK(steps.n_after == 5 && steps.n_before == 5 && memcmp(plain, watched, sizeof plain) == 0);
    CHECK(ellm_session_truncate(context, 0, 4) == ELLM_OK);
    steps = (watcher){.fails_at = 2};
    CHECK(ellm_session_eval(context, 0, tokens + 4, 2, watched) == ELLM_CANCELLED);
    CHECK(steps.n_after == 1 && ellm_session_length(context, 0) == 4);

    ellm_context_observe(context, NULL);
    memset(watched, 0, sizeof watched);
    CHECK(ellm_session_eval(context, 0, tokens + 4, 2, watched) == ELLM_OK);
    CHECK(memcmp(plain, watched, sizeof plain) == 0);
    ellm_context_close(context);
}

/* ---- commands ---- */

/* Runs a command and returns what it printed. */
static const char *printed(command_run *run, command_id id, const char *const *argv, int argc, ellm_status *status,
                           ellm_error *error) {
    static char text[text_cap];
    char path[] = "/tmp/edgellm-out-XXXXXX";
    settings s;
    int file = mkstemp(path), before = dup(STDOUT_FILENO);
    CHECK(file >= 0 && before >= 0 && dup2(file, STDOUT_FILENO) >= 0);
    *error = (ellm_error){""};
    *status = options_parse(id, "test", argc, (char **)(uintptr_t)argv, &s, error);
    if (*status == ELLM_OK) {
        *status = run(&s, error);
    }
    fflush(stdout);
    CHECK(dup2(before, STDOUT_FILENO) >= 0);
    ssize_t n = pread(file, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    close(file);
    close(before);
    unlink(path);
    return text;
}

#define RUN_COMMAND(run, id, ...)                                                                                      \
    printed(run, id, (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *),  \
            &status, &error)

static int count(const char *text, const char *part) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at++) {
        n++;
    }
    return n;
}

static void test_profile(const char *directory) {
    ellm_status status;
    ellm_error error;
    const char *text = RUN_COMMAND(profile_main, PROFILE, directory, "--tokens", "2", "--depth", "1", "--runs", "3");
    CHECK_STATUS(status, ELLM_OK, error, "");
    CHECK(count(text, "\"phase\":") == 2 && count(text, "\"done\":") == 2 && count(text, "\"profile\":1") == 1);
    CHECK(count(text, "\"kernel\":\"append_") >= 2 && count(text, "\"kernel\":\"head_1\"") == 2);
    text = RUN_COMMAND(profile_main, PROFILE, directory, "--tokens", "0", "--depth", "0", "--runs", "1");
    CHECK(status == ELLM_OK && count(text, "prefill\",\"tokens") == 0 && count(text, "\"depth\":0") == 1);
    RUN_COMMAND(profile_main, PROFILE, directory, "--depth", "1000");
    CHECK_STATUS(status, ELLM_USAGE, error, "do not fit the context of 1000");
    RUN_COMMAND(profile_main, PROFILE, directory, "--depth", "5"); /* token 31 makes the kernel fail */
    CHECK_STATUS(status, ELLM_KERNEL_FAILED, error, "while computing");
}

static void test_trace(const char *directory) {
    ellm_status status;
    ellm_error error;
    char first[text_cap];
    const char *text =
        RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "3,8,13,18,23,28", "--step", "4", "--context", "6");
    CHECK_STATUS(status, ELLM_OK, error, "");
    CHECK(count(text, "\n") == 7 && count(text, "\"number\":5,\"function\":\"head\"") == 1);
    CHECK(count(text, "\"rows\":2,") == 2);    /* the second piece, padded to 4 */
    CHECK(count(text, "\"bytes\":256,") == 2); /* the block of the cache */
    snprintf(first, sizeof first, "%s", text);
    text = RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "3,8,13,18,23,28", "--step", "4", "--context", "6",
                       "--threads", "3");
    CHECK(strcmp(strchr(first, '\n'), strchr(text, '\n')) == 0); /* but for the head, which names the threads */

    text = RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "3,8", "--context", "2", "--at", "2");
    CHECK_STATUS(status, ELLM_OK, error, "");
    CHECK(strstr(text, "\"kernel\":\"head_1\",\"groups\":32,\"grain\":2,\"scalars\":[]") != NULL);
    CHECK(strstr(text, "\"bind\":\"input\",\"bytes\":4,\"name\":\"rows\"") != NULL);
    const char *data = strchr(text, '\n') + 1;
    int32_t row;
    float sum, logit;
    memcpy(&row, data, 4);
    memcpy(&sum, data + 4 + 64, 4); /* row 1 of the hidden rows */
    memcpy(&logit, data + 4 + 256 + 4 * 5, 4);
    CHECK(row == 1 && sum == toy_weight(3) + 2 * toy_weight(8) && logit == 5 * sum);

    RUN_COMMAND(trace_main, TRACE, directory);
    CHECK_STATUS(status, ELLM_USAGE, error, "--tokens 1,2,3");
    RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "1,x");
    CHECK_STATUS(status, ELLM_USAGE, error, "something else at 'x'");
    RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "1,2,3", "--context", "2");
    CHECK_STATUS(status, ELLM_CONTEXT_FULL, error, "raise --context");
    RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "1", "--at", "3");
    CHECK_STATUS(status, ELLM_USAGE, error, "there are only 3 steps");
    RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "1,31");
    CHECK_STATUS(status, ELLM_KERNEL_FAILED, error, "step 0");
    RUN_COMMAND(trace_main, TRACE, directory, "--tokens", "1,77");
    CHECK_STATUS(status, ELLM_TOKEN_RANGE, error, "");
}

/* ---- replay ---- */

static void write_npy(const struct toy *folder, const char *name, const char *header, const void *data, size_t bytes) {
    static char file[4096];
    size_t n = strlen(header);
    memcpy(file, "\x93NUMPY\x01\x00", 8);
    file[8] = (char)(n & 0xff);
    file[9] = (char)(n >> 8);
    memcpy(file + 10, header, n);
    memcpy(file + 10 + n, data, bytes);
    toy_write_file(folder, name, file, 10 + n + bytes);
}

#define FLOATS "{'descr': '<f4', 'fortran_order': False, 'shape': (32,), }\n"
static const char replay_json[] =
    "{\"kernels\":\"kernels.so\",\"symbol\":\"head_1\",\"groups\":32,\"grain\":2,\"scalars\":[],\"arguments\":["
    "{\"bytes\":4,\"before\":\"rows.npy\"},{\"bytes\":256,\"before\":\"hidden.npy\"},"
    "{\"bytes\":128,\"expected\":\"logits.npy\"}]}";

static void write_replay(const struct toy *folder, const char *from, const char *to) {
    char text[1024];
    const char *at = strstr(replay_json, from);
    CHECK(at != NULL);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - replay_json), replay_json, to, at + strlen(from));
    toy_write_file(folder, "replay.json", text, strlen(text));
}

static void test_replay(const struct toy *toy) {
    ellm_status status;
    ellm_error error;
    struct toy folder = {.directory = "/tmp/edgellm-toy-XXXXXX"};
    CHECK(mkdtemp(folder.directory) != NULL);
    const char *directory = folder.directory;
    const int32_t row = 1;
    float hidden[64] = {0}, logits[32];
    hidden[16] = 1.5f;
    for (int v = 0; v < 32; v++) {
        logits[v] = 1.5f * (float)v;
    }
    for (size_t i = 0; i < toy->n_files; i++) {
        if (strcmp(toy->files[i].path, "kernels.so") == 0) {
            toy_write_file(&folder, "kernels.so", toy->files[i].data, toy->files[i].bytes);
        }
    }
    write_npy(&folder, "rows.npy", "{'descr': '<i4', 'fortran_order': False, 'shape': (1,), }\n", &row, 4);
    write_npy(&folder, "hidden.npy", FLOATS, hidden, sizeof hidden);
    write_npy(&folder, "logits.npy", FLOATS, logits, sizeof logits);
    write_replay(&folder, "head_1", "head_1");
    const char *text = RUN_COMMAND(replay_main, REPLAY, directory);
    CHECK_STATUS(status, ELLM_OK, error, "");
    CHECK(strcmp(text, "head_1: all 128 bytes as they should be\n") == 0);
    RUN_COMMAND(replay_main, REPLAY, directory, "--threads", "3");
    CHECK(status == ELLM_OK);

    logits[5] += 1e-4f;
    write_npy(&folder, "logits.npy", FLOATS, logits, sizeof logits);
    RUN_COMMAND(replay_main, REPLAY, directory);
    CHECK_STATUS(status, ELLM_KERNEL_FAILED, error, "1 of 32 elements differ, first element 5: 7.5 instead of 7.5001");
    write_replay(&folder, "\"scalars\"", "\"tolerance\":1e-5,\"scalars\"");
    RUN_COMMAND(replay_main, REPLAY, directory);
    CHECK_STATUS(status, ELLM_OK, error, "");
    write_replay(&folder, "\"scalars\"", "\"tolerance\":-1,\"scalars\"");
    RUN_COMMAND(replay_main, REPLAY, directory);
    CHECK_STATUS(status, ELLM_BUNDLE_FORMAT, error, "tolerance");

    static const struct {
        const char *from, *to, *said;
        ellm_status status;
    } cases[] = {
        {"{", "", "replay.json", ELLM_BUNDLE_FORMAT},
        {"head_1", "head_9", "not in the kernels", ELLM_BUNDLE_FORMAT},
        {"\"groups\":32", "\"groups\":0", "groups", ELLM_BUNDLE_FORMAT},
        {"\"scalars\":[]", "\"scalars\":[1,2,3]", "scalars", ELLM_BUNDLE_FORMAT},
        {"\"scalars\":[]", "\"scalars\":[\"x\"]", "whole number", ELLM_BUNDLE_FORMAT},
        {"kernels.so", "../kernels.so", "it must have kernels", ELLM_BUNDLE_FORMAT},
        {"kernels.so", "rows.npy", "rows.npy", ELLM_KERNEL_INVALID},
        {"rows.npy", "/etc/passwd", "an argument is not", ELLM_BUNDLE_FORMAT},
        {"rows.npy", "absent.npy", "absent.npy", ELLM_BUNDLE_MISSING},
        {"\"bytes\":256", "\"bytes\":-1", "an argument is not", ELLM_BUNDLE_FORMAT},
        {"\"bytes\":256", "\"bytes\":255", "no little-endian .npy array of 255 bytes", ELLM_BUNDLE_FORMAT},
        {"\"arguments\":[", "\"arguments\":[],\"x\":[", "it must have", ELLM_BUNDLE_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_replay(&folder, cases[i].from, cases[i].to);
        RUN_COMMAND(replay_main, REPLAY, directory);
        CHECK_STATUS(status, cases[i].status, error, cases[i].said);
    }

    write_replay(&folder, "head_1", "head_1");
    static const char *const headers[] = {"{'descr': '>i4', 'fortran_order': False, }\n",
                                          "{'descr': '<i4', 'fortran_order': True, }\n",
                                          "{'descr': '<c8', 'fortran_order': False, }\n",
                                          "{'descr': '<i4', }\n",
                                          "",
                                          "{'descr': '"};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        write_npy(&folder, "rows.npy", headers[i], &row, 4);
        RUN_COMMAND(replay_main, REPLAY, directory);
        CHECK_STATUS(status, ELLM_BUNDLE_FORMAT, error, "rows.npy is no little-endian .npy array of 4 bytes");
    }
    for (size_t bytes = 0; bytes < 14; bytes++) { /* cut off, with a header that claims to be longer */
        toy_write_file(&folder, "rows.npy", "\x93NUMPY\x02\x00\xff\xff\xff\xff{}", bytes);
        RUN_COMMAND(replay_main, REPLAY, directory);
        CHECK(status == ELLM_BUNDLE_FORMAT);
    }
    CHECK(unlinkat(AT_FDCWD, directory, AT_REMOVEDIR) != 0);
    toy_close(&folder);
}

int main(void) {
    struct toy toy;
    ellm_error error = {""};
    ellm_model *model = NULL;
    toy_open(&toy, 0);
    toy_compile(&toy, toy_kernels, "-DWINDOW=0 '-DADD=='"); /* so that a position can be computed again */
    toy_write(&toy);
    CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_OK, error, "");
    if (model != NULL) {
        test_observers(model);
        ellm_model_close(model);
        test_profile(toy.directory);
        test_trace(toy.directory);
        test_replay(&toy);
    }
    toy_close(&toy);
    return check_result();
}
