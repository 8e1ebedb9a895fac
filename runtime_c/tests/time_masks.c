/* What constrained answers cost: microseconds for a token's mask, when it is made and when it is found again.
 *
 *     time_masks tokenizer.bin...
 *
 * Answers to a schema are drawn at random from what the masks allow, so that every kind of state is visited. */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "buffer.h"
#include "matcher.h"
#include "vocabulary.h"

static const char schema[] = "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":40},"
                             "\"note\":{\"type\":\"string\"},"
                             "\"level\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":100},\"share\":{\"type\":"
                             "\"number\",\"minimum\":0,\"maximum\":1},"
                             "\"room\":{\"enum\":[\"kitchen\",\"bedroom\",\"hall\"]},\"tags\":{\"type\":\"array\","
                             "\"items\":{\"type\":\"string\",\"maxLength\":20},"
                             "\"maxItems\":5},\"at\":{\"type\":\"string\",\"format\":\"date-time\"},\"inner\":{"
                             "\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}},"
                             "\"required\":[\"name\",\"note\",\"level\",\"share\",\"room\",\"tags\",\"at\",\"inner\"]}";

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* others may use the machine, too */
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static bool is_first(const void *user, int32_t token) {
    (void)user;
    return token == 0;
}

/* A token among those allowed; closing ones more often than their share, so that answers end. */
static int32_t draw(const uint64_t *mask, int32_t n, const ellm_vocabulary *v, uint32_t n_allowed) {
    uint32_t skip = (uint32_t)rand() % n_allowed;
    bool closes = rand() % 8 == 0;
    for (int32_t i = 0; i < n && closes; i++) {
        if ((mask[i / 64] >> i % 64 & 1) != 0 && v->n_bytes[i] == 1 && strchr("\"]}", v->text[v->places[i]]) != NULL) {
            return i;
        }
    }
    for (int32_t i = 0; i < n; i++) {
        if ((mask[i / 64] >> i % 64 & 1) != 0 && skip-- == 0) {
            return i;
        }
    }
    return 0;
}

typedef struct cost {
    double made_us, found_us, accept_us, most_us;
    uint64_t n_made, n_found, n_tokens;
} cost;

static void answer(ellm_grammar *grammar, const ellm_vocabulary *v, float *logits, cost *c) {
    ellm_matcher *m = NULL;
    if (ellm_matcher_open(grammar, v, &m) != ELLM_OK) {
        exit(1);
    }
    for (int i = 0; i < 400 && !ellm_matcher_is_done(m); i++) {
        uint64_t n_masks, before, after;
        const uint64_t *mask;
        uint32_t n_allowed;
        ellm_matcher_get_stats(m, &n_masks, &before);
        double start = now_us();
        ellm_status status = ellm_matcher_apply(m, logits);
        double took = now_us() - start;
        ellm_matcher_get_stats(m, &n_masks, &after);
        *(after > before ? &c->made_us : &c->found_us) += took;
        *(after > before ? &c->n_made : &c->n_found) += 1;
        c->most_us = took > c->most_us ? took : c->most_us;
        if (status != ELLM_OK || ellm_matcher_mask(m, &mask, &n_allowed) != ELLM_OK) {
            fprintf(stderr, "%s\n", ellm_status_text(status));
            exit(1);
        }
        int32_t token = draw(mask, v->n_tokens, v, n_allowed);
        start = now_us();
        status = ellm_matcher_accept(m, token);
        c->accept_us += now_us() - start;
        c->n_tokens++;
        if (status != ELLM_OK) {
            exit(1);
        }
    }
    ellm_matcher_close(m);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        buffer file = {0};
        char piece[65536];
        FILE *from = fopen(argv[i], "rb");
        for (size_t n; from != NULL && (n = fread(piece, 1, sizeof piece, from)) > 0;) {
            buffer_put(&file, piece, n);
        }
        if (from == NULL || fclose(from) != 0) {
            perror(argv[i]);
            return 1;
        }
        ellm_tokenizer *tokenizer = NULL;
        ellm_vocabulary *v = NULL;
        ellm_grammar *grammar = NULL;
        ellm_error error = {""};
        if (ellm_tokenizer_open((const uint8_t *)file.data, file.n, &tokenizer, &error) != ELLM_OK) {
            fprintf(stderr, "%s: %s\n", argv[i], error.text);
            return 1;
        }
        double start = now_us();
        if (ellm_vocabulary_make(tokenizer, (int32_t)ellm_tokenizer_size(tokenizer), is_first, NULL, &v) != ELLM_OK) {
            return 1;
        }
        double ordered = now_us();
        if (ellm_grammar_open_schema(schema, sizeof schema - 1, &grammar, &error) != ELLM_OK) {
            fprintf(stderr, "%s\n", error.text);
            return 1;
        }
        double compiled = now_us();
        float *logits = calloc((size_t)v->n_tokens, sizeof *logits);
        cost c = {0};
        srand(1);
        for (int k = 0; k < 100 && logits != NULL; k++) {
            answer(grammar, v, logits, &c);
        }
        printf("%s: %d tokens, ordered in %.1f ms; the schema compiled in %.2f ms; of %llu masks %llu were made, in "
               "%.0f us each "
               "(the longest in %.0f), the others found and applied in %.1f us; accepting a token %.2f us\n",
               argv[i], (int)v->n_tokens, (ordered - start) / 1e3, (compiled - ordered) / 1e3,
               (unsigned long long)c.n_tokens, (unsigned long long)c.n_made, c.made_us / (double)c.n_made, c.most_us,
               c.found_us / (double)c.n_found, c.accept_us / (double)c.n_tokens);
        free(logits);
        ellm_grammar_close(grammar);
        ellm_vocabulary_close(v);
        ellm_tokenizer_close(tokenizer);
        buffer_free(&file);
    }
    return 0;
}
