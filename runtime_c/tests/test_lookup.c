/* Looking up guesses changes no logits: with every mode, with sliding windows, when cancelled, and when it gets full. */
#include "posix.h"

#include "check.h"
#include "edgellm.h"
#include "toy.h"

enum { n_prompt = 20, length = 300 };

static ellm_context *new_context(const ellm_model *model) {
    ellm_error error = {""};
    ellm_context *context = NULL;
    const ellm_context_options options = {.context_length = length, .n_threads_prefill = 2, .n_threads_decode = 2};
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_OK, error, "");
    return context;
}

/* The answer that somebody picks: it repeats itself for a while, then does something else. */
static int32_t token_at(int i, int novelty) {
    return novelty != 0 && i % novelty == 0 ? (i * 11 + 5) % 31 : (i % 7) * 4 + 1;
}

/* Feeds the same tokens with and without lookup, up to the end of the context; logits must be the same bits. */
static ellm_lookup_stats feed(const ellm_model *model, ellm_lookup_mode mode, int novelty, bool cancels) {
    ellm_context *plain = new_context(model), *context = new_context(model);
    ellm_lookup *lookup = NULL;
    ellm_lookup_stats stats;
    int32_t prompt[n_prompt];
    float expected[TOY_VOCAB], logits[TOY_VOCAB];
    for (int i = 0; i < n_prompt; i++) {
        prompt[i] = token_at(i, 0);
    }
    CHECK(ellm_lookup_open(context, 0, mode, &lookup) == ELLM_OK);
    CHECK(ellm_lookup_begin(lookup, prompt, n_prompt) == ELLM_USAGE); /* the session is still empty */
    CHECK(ellm_session_eval(plain, 0, prompt, n_prompt, NULL) == ELLM_OK);
    CHECK(ellm_session_eval(context, 0, prompt, n_prompt, NULL) == ELLM_OK);
    CHECK(ellm_lookup_begin(lookup, prompt, n_prompt) == ELLM_OK);
    for (int i = n_prompt; i < length; i++) {
        int32_t token = token_at(i, novelty);
        CHECK(ellm_session_eval(plain, 0, &token, 1, expected) == ELLM_OK);
        if (cancels && i % 9 == 0) {
            ellm_context_cancel(context, true);
            ellm_status status = ellm_lookup_eval(lookup, token, logits);
            ellm_context_cancel(context, false);
            if (status == ELLM_CANCELLED) { /* a guess that was right needs no computing */
                CHECK(ellm_session_length(context, 0) == i);
                CHECK(ellm_lookup_eval(lookup, token, logits) == ELLM_OK);
            }
        } else {
            CHECK(ellm_lookup_eval(lookup, token, logits) == ELLM_OK);
        }
        CHECK(memcmp(logits, expected, sizeof logits) == 0);
        if (i % 50 == 0) {
            ellm_lookup_end(lookup);
            CHECK(ellm_session_length(context, 0) == i + 1);
        }
    }
    CHECK(ellm_lookup_eval(lookup, 1, logits) == ELLM_CONTEXT_FULL);
    CHECK(ellm_session_length(context, 0) == length);
    ellm_lookup_get_stats(lookup, &stats);
    CHECK(stats.n_tokens == length - n_prompt && stats.n_steps <= stats.n_tokens);
    CHECK(stats.n_accepted == stats.n_tokens - stats.n_steps && stats.n_accepted <= stats.n_guessed);
    ellm_lookup_close(lookup);
    ellm_context_close(context);
    ellm_context_close(plain);
    return stats;
}

static void test_modes(const ellm_model *model) {
    ellm_lookup_stats stats = feed(model, ELLM_LOOKUP_ON, 0, false);
    CHECK(stats.n_accepted > 150); /* it all repeats itself */
    stats = feed(model, ELLM_LOOKUP_ON, 5, false);
    CHECK(stats.n_guessed > 0 && stats.n_accepted > 0);
    stats = feed(model, ELLM_LOOKUP_OFF, 0, false);
    CHECK(stats.n_guessed == 0 && stats.n_steps == stats.n_tokens);
    feed(model, ELLM_LOOKUP_AUTO, 0, false);
    feed(model, ELLM_LOOKUP_AUTO, 3, false);
    feed(model, ELLM_LOOKUP_ON, 4, true);
    feed(model, ELLM_LOOKUP_AUTO, 0, true);
}

static void test_misuse(const ellm_model *model) {
    ellm_context *context = new_context(model);
    ellm_lookup *lookup = NULL;
    float logits[TOY_VOCAB];
    CHECK(ellm_lookup_open(context, 1, ELLM_LOOKUP_AUTO, &lookup) == ELLM_USAGE && lookup == NULL);
    CHECK(ellm_lookup_open(context, 0, ELLM_LOOKUP_AUTO, &lookup) == ELLM_OK);
    CHECK(ellm_lookup_begin(lookup, NULL, 0) == ELLM_OK);
    CHECK(ellm_lookup_eval(lookup, TOY_VOCAB, logits) == ELLM_TOKEN_RANGE);
    CHECK(ellm_lookup_eval(lookup, 31, logits) == ELLM_KERNEL_FAILED);
    CHECK(ellm_session_length(context, 0) == 0);
    CHECK(ellm_lookup_eval(lookup, 3, logits) == ELLM_OK);
    ellm_lookup_close(lookup);
    ellm_lookup_close(NULL);
    ellm_context_close(context);
}

int main(void) {
    static const int windows[] = {0, 70, 5};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        struct toy toy;
        ellm_error error = {""};
        ellm_model *model = NULL;
        char flags[32];
        toy_open(&toy, windows[i]);
        snprintf(flags, sizeof flags, "-DWINDOW=%d -DADD==", windows[i]); /* positions are written, not added to */
        toy_compile(&toy, toy_kernels, flags);
        toy_write(&toy);
        CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_OK, error, "");
        if (model != NULL) {
            test_modes(model);
            test_misuse(model);
            ellm_model_close(model);
        }
        toy_close(&toy);
    }
    return check_result();
}
