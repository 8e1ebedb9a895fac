/* Evaluation of the toy bundle: the same logits for every split, thread count and company. */
#include "posix.h"

#include <pthread.h>

#include "check.h"
#include "edgellm.h"
#include "toy.h"

enum { n_prompt = 150 };

static int32_t prompt_token(int i) {
    return (i * 5 + 3) % 31;
}

/* What the model computes, in the kernel's own order. */
static float reference(const int32_t *tokens, int position, int window, int v) {
    float sum = 0;
    for (int p = position; p >= 0 && (window == 0 || p > position - window); p--) {
        sum += toy_weight(tokens[p]) * (float)(p + 1);
    }
    return sum * (float)v;
}

static void check_logits(const float *logits, const int32_t *tokens, int position, int window) {
    int wrong = 0;
    for (int v = 0; v < TOY_VOCAB; v++) {
        wrong += logits[v] != reference(tokens, position, window, v);
    }
    CHECK(wrong == 0);
}

static ellm_context *new_context(const ellm_model *model, int32_t sessions, int32_t length, int32_t threads) {
    ellm_error error = {""};
    ellm_context *context = NULL;
    ellm_context_options options = {.n_sessions = sessions, .context_length = length, .n_threads_prefill = threads};
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_OK, error, "");
    return context;
}

/* All positions' logits in one call, and every possible split, give the same. */
static void test_splits(const ellm_model *model, int window, int32_t threads) {
    static float logits[n_prompt][TOY_VOCAB];
    int32_t tokens[n_prompt];
    ellm_row rows[n_prompt];
    ellm_context *context = new_context(model, 2, 300, threads);
    for (int i = 0; i < n_prompt; i++) {
        tokens[i] = prompt_token(i);
        rows[i] = (ellm_row){tokens[i], i, 1, true};
    }
    CHECK(ellm_context_eval(context, rows, n_prompt, logits[0]) == ELLM_OK);
    CHECK(ellm_session_length(context, 1) == n_prompt && ellm_session_length(context, 0) == 0);
    for (int i = 0; i < n_prompt; i++) {
        check_logits(logits[i], tokens, i, window);
    }
    for (int split = 1; split < 12; split++) {
        CHECK(ellm_session_truncate(context, 1, 0) == ELLM_OK);
        for (int at = 0; at < n_prompt; at += split) {
            int n = n_prompt - at < split ? n_prompt - at : split;
            float last[TOY_VOCAB];
            CHECK(ellm_session_eval(context, 1, tokens + at, (size_t)n, last) == ELLM_OK);
            CHECK(memcmp(last, logits[at + n - 1], sizeof last) == 0);
        }
    }
    ellm_context_close(context);
}

/* Two sessions in the same steps do not see each other; only wanted logits come, in row order. */
static void test_sessions(const ellm_model *model, int window) {
    enum { n = 70 };
    static float logits[2 * n][TOY_VOCAB];
    int32_t tokens[2][n];
    ellm_row rows[2 * n];
    ellm_context *context = new_context(model, 2, 300, 2);
    size_t n_wanted = 0;
    for (int i = 0; i < n; i++) {
        for (int slot = 0; slot < 2; slot++) {
            tokens[slot][i] = prompt_token(i * 2 + slot);
            rows[2 * i + slot] = (ellm_row){tokens[slot][i], i, slot, (2 * i + slot) % 3 == 0};
            n_wanted += (2 * i + slot) % 3 == 0;
        }
    }
    CHECK(ellm_context_eval(context, rows, 2 * n, logits[0]) == ELLM_OK);
    size_t at = 0;
    for (int i = 0; i < 2 * n; i++) {
        if (rows[i].wants_logits) {
            check_logits(logits[at++], tokens[i % 2], i / 2, window);
        }
    }
    CHECK(at == n_wanted);
    ellm_context_close(context);
}

static void test_truncate(const ellm_model *model, int window) {
    int32_t tokens[n_prompt];
    float logits[TOY_VOCAB];
    ellm_context *context = new_context(model, 1, n_prompt, 1);
    for (int i = 0; i < n_prompt; i++) {
        tokens[i] = prompt_token(i);
    }
    for (int round = 0; round < 20; round++) { /* blocks come back to the pool, and zeroed */
        CHECK(ellm_session_eval(context, 0, tokens, n_prompt, logits) == ELLM_OK);
        check_logits(logits, tokens, n_prompt - 1, window);
        CHECK(ellm_session_truncate(context, 0, 0) == ELLM_OK);
    }
    CHECK(ellm_session_eval(context, 0, tokens, 100, NULL) == ELLM_OK);
    CHECK(ellm_session_truncate(context, 0, 101) == ELLM_USAGE);
    CHECK(ellm_session_truncate(context, 0, -1) == ELLM_USAGE);
    if (window == 0) { /* the toy adds to what a position held: only whole blocks come back clean */
        CHECK(ellm_session_truncate(context, 0, 64) == ELLM_OK);
        CHECK(ellm_session_length(context, 0) == 64);
        CHECK(ellm_session_eval(context, 0, tokens + 64, 30, logits) == ELLM_OK);
        check_logits(logits, tokens, 93, window);
    }
    ellm_context_close(context);
}

static void test_refusals(const ellm_model *model) {
    ellm_context *context = new_context(model, 1, 8, 2);
    int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, high = TOY_VOCAB, low = -1, failing = 31;
    float logits[TOY_VOCAB];
    CHECK(ellm_context_length(context) == 8);
    CHECK(ellm_session_eval(context, 0, tokens, 9, logits) == ELLM_CONTEXT_FULL);
    CHECK(ellm_session_eval(context, 0, &high, 1, logits) == ELLM_TOKEN_RANGE);
    CHECK(ellm_session_eval(context, 0, &low, 1, logits) == ELLM_TOKEN_RANGE);
    CHECK(ellm_session_eval(context, 1, tokens, 1, logits) == ELLM_USAGE);
    const ellm_row gap = {1, 1, 0, false}, wants = {1, 0, 0, true}, full = {1, 8, 0, false};
    CHECK(ellm_context_eval(context, &gap, 1, NULL) == ELLM_USAGE);
    CHECK(ellm_context_eval(context, &wants, 1, NULL) == ELLM_USAGE);
    CHECK(ellm_context_eval(context, &full, 1, NULL) == ELLM_CONTEXT_FULL);
    CHECK(ellm_session_length(context, 0) == 0);
    CHECK(ellm_session_eval(context, 0, &failing, 1, logits) == ELLM_KERNEL_FAILED);
    CHECK(ellm_session_length(context, 0) == 0);
    CHECK(ellm_session_eval(context, 0, tokens, 8, logits) == ELLM_OK);
    check_logits(logits, tokens, 7, 0);
    CHECK(ellm_session_eval(context, 0, tokens, 1, logits) == ELLM_CONTEXT_FULL);
    CHECK(ellm_session_truncate(context, 0, 0) == ELLM_OK);
    ellm_context_cancel(context, true);
    CHECK(ellm_session_eval(context, 0, tokens, 2, logits) == ELLM_CANCELLED);
    ellm_context_cancel(context, false);
    CHECK(ellm_session_eval(context, 0, tokens, 2, logits) == ELLM_OK);
    ellm_context_close(context);
}

static void test_options(const ellm_model *model) {
    ellm_error error = {""};
    ellm_context *context = NULL;
    ellm_context_options options = {.context_length = 1001};
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_USAGE, error, "1 to 1000");
    CHECK(context == NULL);
    options = (ellm_context_options){.n_sessions = -1};
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_USAGE, error, "sessions");
    options = (ellm_context_options){.n_threads_prefill = 65};
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_USAGE, error, "1 to 64");
    CHECK_STATUS(ellm_context_open(model, NULL, &context, &error), ELLM_OK, error, "");
    CHECK(ellm_context_length(context) == 1000);
    ellm_context_close(context);
    ellm_context_close(NULL);
}

/* More memory than there is: refused with the numbers, before any page is touched. */
static void test_memory(struct toy *toy) {
    ellm_error error = {""};
    ellm_model *model = NULL;
    ellm_context *context = NULL;
    ellm_context_options options = {.n_sessions = 1024};
    toy_replace(toy, "plan.json", "\"bytes_per_block\":256", "\"bytes_per_block\":4294967296");
    toy_write(toy);
    CHECK_STATUS(ellm_model_open(toy->directory, &model, &error), ELLM_OK, error, "");
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_NO_MEMORY, error,
                 "1024 sessions of 1000 positions need");
    ellm_model_close(model);
}

int main(void) {
    static const int windows[] = {0, 70};
    for (size_t i = 0; i < 2; i++) {
        struct toy toy;
        ellm_error error = {""};
        ellm_model *model = NULL;
        toy_open(&toy, windows[i]);
        toy_write(&toy);
        CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_OK, error, "");
        if (model != NULL) {
            for (int32_t threads = 1; threads <= 3; threads++) {
                test_splits(model, windows[i], threads);
            }
            test_sessions(model, windows[i]);
            test_truncate(model, windows[i]);
            if (windows[i] == 0) {
                test_refusals(model);
                test_options(model);
            }
            ellm_model_close(model);
        }
        if (windows[i] == 0) {
            test_memory(&toy);
        }
        toy_close(&toy);
    }
    return check_result();
}
