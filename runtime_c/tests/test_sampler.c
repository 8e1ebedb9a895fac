/* The sampler against a plain reference that sorts everything, and against the frequencies it promises. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "edgellm.h"

static uint32_t noise_state = 1;
static float noise(void) { /* [-1, 1) */
    noise_state = noise_state * 1664525u + 1013904223u;
    return (float)(noise_state >> 8) / 8388608.0f - 1.0f;
}

static ellm_sampler *open_sampler(int32_t vocab, ellm_sampler_options options) {
    ellm_sampler *sampler;
    CHECK(ellm_sampler_open(vocab, &options, &sampler) == ELLM_OK);
    return sampler;
}

static const ellm_sampler_options off = {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f};

/* ---- reference: the allowed set and each member's probability, by sorting ---- */

typedef struct entry {
    double p;
    int32_t token;
} entry;

static int descending(const void *a, const void *b) {
    const entry *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->token > y->token ? 1 : -1);
}

static int32_t reference(const float *logits, int32_t vocab, ellm_sampler_options o, entry *out) {
    double top = -INFINITY, sum = 0, running = 0;
    for (int32_t i = 0; i < vocab; i++) top = fmax(top, (double)logits[i]);
    for (int32_t i = 0; i < vocab; i++) {
        out[i] = (entry){exp(((double)logits[i] - top) / (double)o.temperature), i};
    }
    qsort(out, (size_t)vocab, sizeof *out, descending);
    int32_t n = o.top_k > 0 && o.top_k < vocab ? o.top_k : vocab;
    for (int32_t i = 0; i < n; i++) sum += out[i].p;
    int32_t kept = 0;
    while (kept < n) {
        running += out[kept++].p;
        if (o.top_p < 1.0f && running >= (double)o.top_p * sum) break;
    }
    while (kept > 1 && out[kept - 1].p < (double)o.min_p) kept--;
    sum = 0;
    for (int32_t i = 0; i < kept; i++) sum += out[i].p;
    for (int32_t i = 0; i < kept; i++) out[i].p /= sum;
    return kept;
}

static void test_frequencies(ellm_sampler_options o) {
    enum { vocab = 300, n_draws = 40000 };
    float logits[vocab], copy[vocab];
    int counts[vocab] = {0};
    entry expected[vocab];
    for (int i = 0; i < vocab; i++) logits[i] = noise() * 6.0f;
    int32_t kept = reference(logits, vocab, o, expected);
    ellm_sampler *sampler = open_sampler(vocab, o);
    for (int i = 0; i < n_draws; i++) {
        memcpy(copy, logits, sizeof logits);
        counts[ellm_sampler_pick(sampler, copy)]++;
    }
    int inside = 0;
    for (int i = 0; i < kept; i++) {
        double mean = expected[i].p * (double)n_draws, spread = sqrt(mean * (1 - expected[i].p)) + 1;
        CHECK(fabs(counts[expected[i].token] - mean) < 5 * spread);
        inside += counts[expected[i].token];
    }
    CHECK(inside == n_draws); /* nothing outside the allowed set is ever picked */
    ellm_sampler_close(sampler);
}

/* On a large vocabulary the set must be cut exactly as by sorting, ties by id included. */
static void test_sets(void) {
    enum { vocab = 128256 };
    float *logits = malloc(vocab * sizeof *logits), *copy = malloc(vocab * sizeof *copy);
    entry *expected = malloc(vocab * sizeof *expected);
    char *allowed = malloc(vocab);
    CHECK(logits != NULL && copy != NULL && expected != NULL && allowed != NULL);
    const ellm_sampler_options cases[] = {
        {.temperature = 1.0f, .top_p = 1.0f, .top_k = 40, .repetition_penalty = 1.0f},
        {.temperature = 0.7f, .top_p = 0.9f, .repetition_penalty = 1.0f},
        {.temperature = 1.5f, .top_p = 0.5f, .top_k = 1000, .min_p = 0.05f, .repetition_penalty = 1.0f},
        {.temperature = 1.0f, .top_p = 0.999f, .repetition_penalty = 1.0f},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (int i = 0; i < vocab; i++) {
            float x = noise();
            logits[i] = c == 0 ? floorf(x * 20.0f) : x * x * x * 14.0f; /* c == 0: many ties */
        }
        int32_t kept = reference(logits, vocab, cases[c], expected);
        memset(allowed, 0, vocab);
        for (int32_t i = 0; i < kept; i++) allowed[expected[i].token] = 1;
        ellm_sampler *sampler = open_sampler(vocab, cases[c]);
        for (int i = 0; i < 20; i++) {
            memcpy(copy, logits, vocab * sizeof *copy);
            CHECK(allowed[ellm_sampler_pick(sampler, copy)]);
        }
        ellm_sampler_close(sampler);
    }
    free(logits), free(copy), free(expected), free(allowed);
}

static void test_greedy(void) {
    ellm_sampler_options o = off;
    o.temperature = 0.0f;
    ellm_sampler *sampler = open_sampler(4, o);
    CHECK(ellm_sampler_pick(sampler, (float[]){1, 3, 3, 2}) == 1);
    CHECK(ellm_sampler_pick(sampler, (float[]){NAN, -INFINITY, -7, NAN}) == 2);
    CHECK(ellm_sampler_pick(sampler, (float[]){0, 0, INFINITY, 0}) == 2);
    ellm_sampler_close(sampler);
    o.temperature = 1.0f;
    sampler = open_sampler(4, o); /* rubbish in: still an id */
    int32_t token = ellm_sampler_pick(sampler, (float[]){NAN, NAN, NAN, NAN});
    CHECK(token >= 0 && token < 4);
    token = ellm_sampler_pick(sampler, (float[]){-INFINITY, -INFINITY, -INFINITY, -INFINITY});
    CHECK(token >= 0 && token < 4);
    ellm_sampler_close(sampler);
    o.temperature = 1e-38f; /* the division overflows */
    sampler = open_sampler(4, o);
    CHECK(ellm_sampler_pick(sampler, (float[]){1, 9, 8, 7}) == 1);
    ellm_sampler_close(sampler);
}

static void test_penalties(void) {
    ellm_sampler_options o = off;
    o.temperature = 0.0f;
    o.repetition_penalty = 2.0f;
    o.presence_penalty = 0.5f;
    o.frequency_penalty = 0.25f;
    o.penalty_window = 3;
    ellm_sampler *sampler = open_sampler(4, o);
    ellm_sampler_accept(sampler, 3); /* falls out of the window */
    ellm_sampler_accept(sampler, 0);
    ellm_sampler_accept(sampler, 1);
    ellm_sampler_accept(sampler, 0);
    ellm_sampler_accept(sampler, 77); /* no such token: ignored */
    for (int again = 0; again < 2; again++) {
        float logits[] = {8, -1, 2.5f, 2};
        CHECK(ellm_sampler_pick(sampler, logits) == 0);
        CHECK(logits[0] == 8 / 2.0f - 0.5f - 2 * 0.25f && logits[1] == -1 * 2.0f - 0.5f - 0.25f);
        CHECK(logits[2] == 2.5f && logits[3] == 2.0f);
    }
    ellm_sampler_close(sampler);
    const ellm_logit_bias bias[] = {{2, 10.0f}, {0, -INFINITY}};
    o = off;
    o.temperature = 0.0f;
    o.bias = bias;
    o.n_bias = 2;
    sampler = open_sampler(4, o);
    CHECK(ellm_sampler_pick(sampler, (float[]){8, 5, 0, 2}) == 2);
    ellm_sampler_close(sampler);
}

/* The literal output of seed 42, the same on every machine and libc. */
static void test_seed(void) {
    enum { vocab = 1000 };
    float logits[vocab];
    ellm_sampler_options o = off;
    o.seed = 42;
    o.top_k = 50;
    o.top_p = 0.95f;
    ellm_sampler *sampler = open_sampler(vocab, o);
    static const int32_t expected[] = {330, 144, 624, 227, 674, 521, 724, 881, 141, 133, 323, 724};
    bool right = true;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        for (int j = 0; j < vocab; j++) logits[j] = (float)((j * 7919 + (int)i * 104729) % 1009) / 128.0f;
        int32_t token = ellm_sampler_pick(sampler, logits);
        if (token != expected[i]) {
            fprintf(stderr, "seed 42, pick %zu: %d instead of %d\n", i, (int)token, (int)expected[i]);
            right = false;
        }
    }
    CHECK(right);
    ellm_sampler_close(sampler);
}

static void test_rejects(void) {
    ellm_sampler *sampler;
    ellm_sampler_options o = off;
    o.temperature = NAN;
    CHECK(ellm_sampler_open(4, &o, &sampler) == ELLM_USAGE && sampler == NULL);
    o = off, o.top_p = 1.5f;
    CHECK(ellm_sampler_open(4, &o, &sampler) == ELLM_USAGE);
    o = off, o.repetition_penalty = 0.0f;
    CHECK(ellm_sampler_open(4, &o, &sampler) == ELLM_USAGE);
    const ellm_logit_bias bias = {4, 1.0f};
    o = off, o.bias = &bias, o.n_bias = 1;
    CHECK(ellm_sampler_open(4, &o, &sampler) == ELLM_TOKEN_RANGE);
    CHECK(ellm_sampler_open(4, NULL, &sampler) == ELLM_OK);
    ellm_sampler_close(sampler);
    ellm_sampler_close(NULL);
}

int main(void) {
    test_greedy();
    test_rejects();
    test_penalties();
    test_seed();
    test_frequencies(off);
    test_frequencies((ellm_sampler_options){.temperature = 2, .top_p = 1, .top_k = 7, .repetition_penalty = 1});
    test_frequencies((ellm_sampler_options){.temperature = 1.3f, .top_p = 0.8f, .repetition_penalty = 1, .seed = 9});
    test_frequencies((ellm_sampler_options){
        .temperature = 1.5f, .top_p = 0.97f, .min_p = 0.1f, .top_k = 60, .repetition_penalty = 1, .seed = 5});
    test_sets();
    return check_result();
}
