/* States of one size per session, as recurrent networks keep them: any split gives the same, and nothing is ever cut. The toy's
 * logits come from a running sum here, which a session carries from token to token. */
#include "posix.h"

#include "check.h"
#include "edgellm.h"
#include "toy.h"

enum { n_tokens = 190, n_prefix = 140 };

static int32_t tokens[n_tokens];

static const char kernels[] =
    "#define SCAN(n) int scan_##n(const int *token, const int *position, const int *slot, float *state,\\\n"
    "        const float *weight, float *hidden, long long g0, long long g1) {\\\n"
    "    for (int i = 0; i < n; i++) {\\\n"
    "        if (position[i] < 0) continue;\\\n"
    "        float *sum = state + slot[i] * 16;\\\n"
    "        *sum = (position[i] == 0 ? 0 : *sum) + weight[token[i]] * (position[i] + 1);\\\n"
    "        hidden[i * 16] = *sum;\\\n"
    "        if (token[i] == 31) return 7;\\\n"
    "    }\\\n"
    "    return 0;\\\n"
    "}\n" TOY_HEAD_CODE "SCAN(1) SCAN(4) HEAD(1) HEAD(2)\n";

#define SCAN(n)                                                                                                        \
    "{\"name\":\"scan_" #n "\",\"args\":[{\"access\":\"r\",\"bytes\":4},{\"access\":\"r\",\"bytes\":4},"               \
    "{\"access\":\"r\",\"bytes\":4},{\"access\":\"rw\",\"bytes\":[64,\"sessions\"]},"                                  \
    "{\"access\":\"r\",\"bytes\":128},{\"access\":\"w\",\"bytes\":64}],\"scalars\":[],\"groups\":1,\"grain\":1}"
#define BODY(n, kernel)                                                                                                \
    "{\"name\":\"body\",\"n\":" #n ",\"steps\":[{\"kernel\":" #kernel ",\"args\":[[\"i\",\"tokens\"],"                 \
    "[\"i\",\"positions\"],[\"i\",\"slots\"],[\"s\",0],[\"w\",0],[\"a\",0]]}]}"

static const char plan[] =
    "{\"format\":1,\"arena_bytes\":512,\"kv_block\":64,"
    "\"weights\":[{\"tensor\":\"embedding\",\"bytes\":128}],"
    "\"states\":[{\"name\":\"scan.0\",\"bytes_per_session\":64}],"
    "\"kernels\":[" SCAN(1) "," SCAN(4) "," TOY_HEAD(1, 128) "," TOY_HEAD(2, 256) "],\"functions\":[" BODY(
        1, 0) "," BODY(4, 1) "," TOY_HEADS(1, 2) "," TOY_HEADS(2, 3) "],"
                                                                     "\"hidden\":{"
                                                                     "\"arena\":0,"
                                                                     "\"bytes_per_"
                                                                     "row\":64},"
                                                                     "\"logits\":{"
                                                                     "\"arena\":256,"
                                                                     "\"bytes_per_"
                                                                     "row\":128}}";

static void open_toy(struct toy *toy) {
    toy_open(toy, 0);
    toy_set(toy, "plan.json", plan, strlen(plan));
    toy_compile(toy, kernels, "");
    toy_write(toy);
}

/* Appends tokens up to n and checks the last one's logits against the sum. */
static void extend(ellm_context *context, int32_t slot, int32_t n) {
    float logits[TOY_VOCAB], sum = 0;
    int32_t held = ellm_session_length(context, slot);
    CHECK(ellm_session_eval(context, slot, tokens + held, (size_t)(n - held), logits) == ELLM_OK);
    for (int32_t i = 0; i < n; i++) {
        sum += toy_weight(tokens[i]) * (float)(i + 1);
    }
    CHECK(logits[3] == sum * 3);
    CHECK(ellm_session_length(context, slot) == n);
}

static void test_steps(const ellm_model *model) {
    ellm_context *context = toy_context(model, 3, 0);
    ellm_model_info info;
    ellm_model_get_info(model, &info);
    CHECK(info.kv_bytes_per_token == 0 && info.state_bytes_per_session == 64);
    CHECK(ellm_context_length(context) == TOY_CONTEXT); /* memory is no reason for less */
    for (int32_t step = 1; step < 9; step++) {          /* however a text is cut */
        CHECK(ellm_session_truncate(context, 1, 0) == ELLM_OK);
        for (int32_t n = 0; n < n_tokens; n += step) {
            extend(context, 1, n + step < n_tokens ? n + step : n_tokens);
        }
    }
    for (int32_t n = 0; n < 60; n += 2) { /* two sessions in one step, between each other */
        ellm_row rows[4];
        for (int32_t i = 0; i < 4; i++) {
            rows[i] = (ellm_row){.token = tokens[n + i / 2], .position = n + i / 2, .slot = i % 2 * 2};
        }
        CHECK(ellm_context_eval(context, rows, 4, NULL) == ELLM_OK);
    }
    extend(context, 0, 61);
    extend(context, 2, 100);
    extend(context, 0, 62);
    ellm_context_close(context);
}

static void test_no_cuts(const ellm_model *model) {
    ellm_context *context = toy_context(model, 2, 0);
    extend(context, 0, 100);
    CHECK(ellm_session_truncate(context, 0, 99) == ELLM_USAGE && ellm_session_truncate(context, 0, 64) == ELLM_USAGE);
    CHECK(ellm_session_truncate(context, 0, 100) == ELLM_OK);
    CHECK(ellm_session_share(context, 0, 1, 99) == ELLM_USAGE && ellm_session_length(context, 1) == 0);
    CHECK(ellm_session_share(context, 0, 1, 100) == ELLM_OK);
    extend(context, 0, 150);
    extend(context, 1, 120); /* each its own from there on */
    extend(context, 0, 190);
    CHECK(ellm_session_share(context, 0, 1, 0) == ELLM_OK);
    extend(context, 1, 30);
    CHECK(ellm_session_truncate(context, 0, 0) == ELLM_OK);
    extend(context, 0, 1);
    extend(context, 0, 9);
    const int32_t failing[] = {3, 31, 4};
    CHECK(ellm_session_eval(context, 0, failing, 3, NULL) == ELLM_KERNEL_FAILED);
    CHECK(ellm_session_length(context, 0) == 0); /* what the state is then, nobody knows */
    extend(context, 0, 40);
    extend(context, 1, 31);
    ellm_context_close(context);
}

static void test_no_guesses(const ellm_model *model) {
    ellm_context *context = toy_context(model, 1, 0);
    ellm_lookup *lookup;
    ellm_lookup_stats stats;
    float logits[TOY_VOCAB], sum = 0;
    CHECK(ellm_lookup_open(context, 0, ELLM_LOOKUP_ON, &lookup) == ELLM_OK);
    CHECK(ellm_lookup_begin(lookup, tokens, 0) == ELLM_OK);
    for (int32_t i = 0; i < 60; i++) { /* a text that repeats itself could not be guessed better */
        CHECK(ellm_lookup_eval(lookup, 5 + i % 3, logits) == ELLM_OK);
        sum += toy_weight(5 + i % 3) * (float)(i + 1);
        CHECK(logits[1] == sum);
    }
    ellm_lookup_get_stats(lookup, &stats);
    CHECK(stats.n_tokens == 60 && stats.n_guessed == 0);
    ellm_lookup_close(lookup);
    ellm_context_close(context);
}

static void save(const struct toy *toy, const char *name, char path[128]) {
    ellm_error error = {""};
    ellm_model *model = toy_model(toy);
    ellm_context *context = toy_context(model, 1, 0);
    snprintf(path, 128, "%s/%s", toy->directory, name);
    extend(context, 0, n_prefix);
    CHECK_STATUS(ellm_session_save(context, 0, tokens, path, NULL, 0, &error), ELLM_OK, error, "");
    ellm_context_close(context);
    ellm_model_close(model);
}

static void test_files(struct toy *toy) {
    char path[128];
    static char data[1 << 20];
    ellm_error error = {""};
    save(toy, "state", path);
    ellm_model *model = toy_model(toy);
    ellm_context *context = toy_context(model, 2, 0);
    ellm_saved *saved = NULL;
    CHECK_STATUS(ellm_saved_open(model, path, &saved, &error), ELLM_OK, error, "");
    extend(context, 1, 20);
    CHECK(ellm_session_restore(context, 1, saved) == ELLM_OK && ellm_session_length(context, 1) == n_prefix);
    extend(context, 1, n_tokens);
    ellm_saved_close(saved);
    ellm_context_close(context);
    ellm_model_close(model);

    size_t n = toy_read(path, data, sizeof data);
    toy_set(toy, "weights/prefix.safetensors", data, n);
    toy_replace(toy, "manifest.json", "\"provenance\":{}",
                "\"prefix\":{\"file\":\"weights/prefix.safetensors\"},\"provenance\":{}");
    toy_write(toy);
    model = toy_model(toy);
    context = toy_context(model, 2, 0);
    extend(context, 1, 7);
    CHECK(ellm_session_share(context, ELLM_PREFIX, 1, n_prefix - 1) == ELLM_USAGE);
    extend(context, 1, 8);
    for (int round = 0; round < 2; round++) {
        CHECK(ellm_session_share(context, ELLM_PREFIX, 1, n_prefix) == ELLM_OK);
        extend(context, 1, n_tokens);
    }
    ellm_context_close(context);
    context = toy_context(model, 1, n_prefix - 1); /* too short for it: it is not there */
    CHECK(ellm_session_share(context, ELLM_PREFIX, 0, n_prefix - 1) == ELLM_USAGE);
    extend(context, 0, n_prefix - 1);
    ellm_context_close(context);
    ellm_model_close(model);
    toy_replace(toy, "weights/prefix.safetensors", "[1,64]", "[1,32]");
    toy_replace(toy, "weights/prefix.safetensors", "\"kv.0\"", "\"kv.1\"");
    toy_write(toy);
    CHECK(ellm_model_open(toy->directory, &model, &error) == ELLM_BUNDLE_FORMAT);
}

static void test_bad_plans(void) {
    static const struct {
        const char *from, *to, *part;
    } changes[] = {
        {"\"bytes_per_session\":64", "\"bytes_per_session\":0", "states[0].bytes_per_session"},
        {"\"bytes_per_session\":64}", "\"bytes_per_session\":64},{\"bytes_per_block\":64}",
         "states[1].bytes_per_session"},
        {"[64,\"sessions\"]", "[65,\"sessions\"]", "larger than what it is bound to"},
        {"[64,\"sessions\"]", "[64,\"blocks\"]", "larger than what it is bound to"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct toy toy;
        ellm_error error = {""};
        ellm_model *model = NULL;
        ellm_context *context = NULL;
        open_toy(&toy);
        toy_replace(&toy, "plan.json", changes[i].from, changes[i].to);
        toy_write(&toy);
        ellm_status status = ellm_model_open(toy.directory, &model, &error);
        if (status == ELLM_OK) {
            status = ellm_context_open(model, NULL, &context, &error);
        }
        CHECK_STATUS(status, ELLM_PLAN_INVALID, error, changes[i].part);
        ellm_model_close(model);
        toy_close(&toy);
    }
}

int main(void) {
    struct toy toy;
    for (int32_t i = 0; i < n_tokens; i++) {
        tokens[i] = (i * 11 + i / 7) % 29;
    }
    open_toy(&toy);
    ellm_model *model = toy_model(&toy);
    test_steps(model);
    test_no_cuts(model);
    test_no_guesses(model);
    ellm_model_close(model);
    test_files(&toy);
    toy_close(&toy);
    test_bad_plans();
    return check_result();
}
