/* Answers computed together come out as each would alone; they are taken in turns, refused beyond the limit, and given
 * up when nobody wants them. */
#include "posix.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "batch.h"
#include "check.h"
#include "toy.h"

enum { n_answers = 9, n_tokens = 60 };

typedef struct bench {
    ellm_context *context;
    batch *batch;
    int wake;
} bench;

static bench open_bench(const ellm_model *model, int32_t n_sessions, int32_t n_waiting) {
    bench b = {.wake = eventfd(0, EFD_NONBLOCK)};
    ellm_error error = {""};
    ellm_context_options options = {.n_sessions = n_sessions, .context_length = 300, .n_threads_prefill = 2};
    batch_options wants = {.n_sessions = n_sessions, .n_waiting = n_waiting, .wake = b.wake};
    CHECK_STATUS(ellm_context_open(model, &options, &b.context, &error), ELLM_OK, error, "");
    CHECK_STATUS(batch_open(b.context, model, &wants, &b.batch, &error), ELLM_OK, error, "");
    return b;
}

static void close_bench(bench *b) {
    batch_close(b->batch);
    ellm_context_close(b->context);
    close(b->wake);
}

/* An answer that is sampled: token 31 would make its kernel fail, 2 would end it. */
static generation *ask(const ellm_model *model, int i, int64_t most_tokens) {
    generation *g = generation_new(model);
    if (g == NULL) {
        abort();
    }
    generation_options *o = &g->options;
    g->n_prompt = (size_t)(20 + i * 17);
    g->prompt = calloc(g->n_prompt, sizeof *g->prompt);
    o->biases = calloc(2, sizeof *o->biases);
    if (g->prompt == NULL || o->biases == NULL) {
        abort();
    }
    for (size_t k = 0; k < g->n_prompt; k++) {
        g->prompt[k] = (int32_t)((k * 5 + (size_t)i) % 31);
    }
    o->biases[0] = (ellm_logit_bias){31, -1e9f};
    o->biases[1] = (ellm_logit_bias){2, -1e9f};
    o->sampling = (ellm_sampler_options){.temperature = i % 3 == 0 ? 0 : 1e3f,
                                         .top_p = 1,
                                         .repetition_penalty = 1,
                                         .seed = (uint64_t)i,
                                         .bias = o->biases,
                                         .n_bias = 2};
    o->most_tokens = most_tokens;
    o->n_likely = i % 2 == 0 ? 3 : -1;
    return g;
}

/* Waits until the answer has ended. */
static batch_news finish(bench *b, generation *g, buffer *text, buffer *notes) {
    batch_news news;
    for (;;) {
        batch_take(b->batch, g, text, notes, &news);
        if (news.reason != GENERATING) {
            return news;
        }
        struct pollfd file = {.fd = b->wake, .events = POLLIN};
        uint64_t count;
        poll(&file, 1, -1);
        (void)!read(b->wake, &count, sizeof count);
    }
}

static void test_company(const ellm_model *model) {
    buffer alone[n_answers] = {{0}}, notes_alone[n_answers] = {{0}};
    for (int32_t n_sessions = 1; n_sessions <= 4; n_sessions += 1) {
        bench b = open_bench(model, n_sessions, n_answers);
        generation *all[n_answers];
        for (int i = 0; i < n_answers; i++) {
            all[i] = ask(model, i, n_tokens);
            CHECK(batch_submit(b.batch, &all[i], 1));
        }
        for (int i = 0; i < n_answers; i++) {
            buffer text = {0}, notes = {0};
            batch_news news = finish(&b, all[i], &text, &notes);
            CHECK(news.reason == ENDED_LENGTH && news.n_tokens == n_tokens && text.n >= n_tokens);
            CHECK(notes.n == (i % 2 == 0 ? n_tokens * sizeof(token_note) : 0));
            if (n_sessions == 1) {
                alone[i] = text;
                notes_alone[i] = notes;
            } else {
                CHECK(text.n == alone[i].n && memcmp(text.data, alone[i].data, text.n) == 0);
                CHECK(notes.n == notes_alone[i].n
                      && (notes.n == 0 || memcmp(notes.data, notes_alone[i].data, notes.n) == 0));
                buffer_free(&text);
                buffer_free(&notes);
            }
            batch_drop(b.batch, all[i]);
        }
        batch_stats stats;
        batch_get_stats(b.batch, 1e9, &stats);
        CHECK(stats.n_answers == n_answers && stats.n_tokens == n_answers * n_tokens && !stats.is_stuck);
        /* Continuous batching: fewer steps than one per token. */
        CHECK(n_sessions == 1 || stats.n_steps < n_answers * n_tokens);
        close_bench(&b);
    }
    for (int i = 0; i < n_answers; i++) {
        buffer_free(&alone[i]);
        buffer_free(&notes_alone[i]);
    }
}

/* A log-probability is the logarithm of a probability: those of a whole vocabulary sum up to 1. */
static void test_notes(const ellm_model *model) {
    bench b = open_bench(model, 1, 0);
    generation *g = ask(model, 0, 1);
    g->n_prompt = 1; /* so that the logits are small */
    g->options.n_likely = MOST_LIKELY;
    buffer text = {0}, notes = {0};
    CHECK(batch_submit(b.batch, &g, 1));
    finish(&b, g, &text, &notes);
    token_note note;
    CHECK(notes.n == sizeof note);
    memcpy(&note, notes.data, sizeof note);
    /* The toy's logits are w·v for v = 0..31, w = weight of token 0. */
    double w = (double)toy_weight(0), sum = 0, term = 1, step = 1, x = w; /* e^w by its series */
    for (int i = 1; i < 20; i++) {
        step *= x / i;
        term += step;
    }
    double power = 1;
    for (int v = 0; v < TOY_VOCAB; v++, power *= term) {
        sum += power;
    }
    CHECK(note.n_likely == MOST_LIKELY);
    double before = 1e9;
    for (int i = 0; i < note.n_likely; i++) {
        double most = w < 0 ? i : TOY_VOCAB - 1 - i, e = 1; /* e^(w·token) / sum */
        CHECK(note.likely[i].token == (int32_t)most);
        for (int k = 0; k < (int)most; k++) {
            e *= term;
        }
        double p = e / sum, log_p = (double)note.likely[i].logprob, series = 1, s = 1;
        for (int k = 1; k < 60; k++) {
            s *= log_p / k;
            series += s;
        }
        CHECK(series / p > 0.999 && series / p < 1.001);
        CHECK(log_p <= before);
        before = log_p;
    }
    batch_drop(b.batch, g);
    buffer_free(&text);
    buffer_free(&notes);
    close_bench(&b);
}

/* Beyond the limit nothing is taken; one request with many answers does not keep others waiting. */
static void test_queue(const ellm_model *model) {
    bench b = open_bench(model, 1, 4);
    generation *first[4], *other, *extra[2];
    for (int i = 0; i < 4; i++) {
        first[i] = ask(model, 1, 240); /* long enough that two are not done before the queue is found full */
    }
    CHECK(batch_submit(b.batch, first, 4));
    other = ask(model, 2, 5);
    CHECK(batch_submit(b.batch, &other, 1));
    for (int i = 0; i < 2; i++) {
        extra[i] = ask(model, 3, 5);
    }
    CHECK(!batch_submit(b.batch, extra, 2)); /* all or none */
    for (int i = 0; i < 2; i++) {
        generation_free(extra[i]);
    }
    buffer text = {0}, notes = {0};
    batch_news news = finish(&b, other, &text, &notes), last = finish(&b, first[3], &text, &notes);
    CHECK(news.reason == ENDED_LENGTH && news.times.ended <= last.times.begun);
    for (int i = 0; i < 4; i++) {
        batch_drop(b.batch, first[i]);
    }
    batch_drop(b.batch, other);
    buffer_free(&text);
    buffer_free(&notes);
    close_bench(&b);
}

/* What is dropped, waiting or under way, makes room; closing frees the rest. */
static void test_dropping(const ellm_model *model) {
    bench b = open_bench(model, 2, 8);
    generation *all[8];
    for (int i = 0; i < 8; i++) {
        all[i] = ask(model, i, -1); /* until the context is full */
        CHECK(batch_submit(b.batch, &all[i], 1));
    }
    buffer text = {0}, notes = {0};
    for (int i = 0; i < 6; i++) {
        batch_drop(b.batch, all[i]);
    }
    batch_news news = finish(&b, all[6], &text, &notes);
    CHECK(news.reason == ENDED_LENGTH && news.n_prompt + news.n_tokens == 301); /* the last token needs no position */
    batch_drop(b.batch, all[6]);
    generation *late = ask(model, 0, -1);
    CHECK(batch_submit(b.batch, &late, 1));
    batch_drop(b.batch, all[7]);
    close_bench(&b); /* with `late` under way */
    buffer_free(&text);
    buffer_free(&notes);
}

/* A prompt that begins like an earlier one is not computed anew; one whose kernel fails harms nobody later. */
static void test_reuse_and_failure(const ellm_model *model) {
    bench b = open_bench(model, 2, 8);
    buffer text = {0}, notes = {0}, again = {0};
    generation *g = ask(model, 4, 10);
    CHECK(batch_submit(b.batch, &g, 1));
    CHECK(finish(&b, g, &text, &notes).n_reused == 0);
    batch_drop(b.batch, g);
    g = ask(model, 4, 10);
    g->prompt[g->n_prompt - 1] = 31;
    CHECK(batch_submit(b.batch, &g, 1));
    batch_news news = finish(&b, g, &again, &notes);
    CHECK(news.reason == ENDED_FAILED && news.failed == ELLM_KERNEL_FAILED);
    batch_drop(b.batch, g);
    for (int i = 0; i < 2; i++) {
        buffer_clear(&again);
        g = ask(model, 4, 10);
        CHECK(batch_submit(b.batch, &g, 1));
        news = finish(&b, g, &again, &notes);
        CHECK(news.reason == ENDED_LENGTH && again.n == text.n && memcmp(again.data, text.data, text.n) == 0);
        batch_drop(b.batch, g);
    }
    CHECK(news.n_reused > 0);
    g = ask(model, 4, 10);
    g->options.sampling.top_p = 7; /* no sampler can be made of this */
    CHECK(batch_submit(b.batch, &g, 1));
    CHECK(finish(&b, g, &again, &notes).failed == ELLM_USAGE);
    batch_drop(b.batch, g);
    buffer_free(&text);
    buffer_free(&again);
    buffer_free(&notes);
    close_bench(&b);
}

/* Sessions that begin alike share what is computed, while it is used and afterwards, and none sees what others append. */
static void test_sharing(const ellm_model *model, bool has_window) {
    enum { n_alike = 3 };
    buffer alone[n_alike] = {{0}}, notes = {0};
    bench b = open_bench(model, 1, n_alike);
    for (int i = 0; i < n_alike; i++) {
        generation *g = ask(model, 4, n_tokens);
        g->options.sampling.seed = (uint64_t)i;
        CHECK(batch_submit(b.batch, &g, 1));
        finish(&b, g, &alone[i], &notes);
        batch_drop(b.batch, g);
    }
    close_bench(&b);
    b = open_bench(model, n_alike + 1, n_alike);
    for (int round = 0; round < 3; round++) { /* first all together, then with something else in between */
        generation *all[n_alike], *other = ask(model, 5 + round, round == 1 ? 150 : 5);
        size_t n_reused = 0;
        for (int i = 0; i < n_alike; i++) {
            all[i] = ask(model, 4, n_tokens);
            all[i]->options.sampling.seed = (uint64_t)i;
        }
        CHECK(batch_submit(b.batch, all, n_alike) && batch_submit(b.batch, &other, 1));
        for (int i = 0; i < n_alike; i++) {
            buffer text = {0};
            batch_news news = finish(&b, all[i], &text, &notes);
            n_reused += news.n_reused;
            CHECK(news.reason == ENDED_LENGTH && text.n == alone[i].n && memcmp(text.data, alone[i].data, text.n) == 0);
            CHECK(news.n_reused < news.n_prompt);
            batch_drop(b.batch, all[i]);
            buffer_free(&text);
        }
        size_t n_prompt = 20 + 4 * 17;
        if (round == 0 || !has_window) { /* one of them computes it, or they take turns */
            CHECK(n_reused >= (n_alike - 1) * (n_prompt - 64));
        }
        CHECK(round == 0 || has_window || n_reused >= n_alike * (n_prompt - 1) - n_prompt);
        batch_drop(b.batch, other);
    }
    close_bench(&b);
    for (int i = 0; i < n_alike; i++) {
        buffer_free(&alone[i]);
    }
    buffer_free(&notes);
}

int main(void) {
    struct toy toy;
    ellm_error error = {""};
    ellm_model *model = NULL;
    toy_open(&toy, 0);
    toy_compile(&toy, toy_kernels, "-DWINDOW=0 -DADD==");
    toy_write(&toy);
    CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_OK, error, "");
    if (model != NULL) {
        test_company(model);
        test_notes(model);
        test_queue(model);
        test_dropping(model);
        test_reuse_and_failure(model);
        test_sharing(model, false);
        ellm_model_close(model);
    }
    toy_close(&toy);
    toy_open(&toy, 70); /* a window: blocks that nobody sees any more are given back, shared ones by the last */
    toy_compile(&toy, toy_kernels, "-DWINDOW=70 -DADD==");
    toy_write(&toy);
    CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_OK, error, "");
    if (model != NULL) {
        test_sharing(model, true);
        ellm_model_close(model);
    }
    toy_close(&toy);
    return check_result();
}
