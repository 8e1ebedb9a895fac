/* Prompt-lookup decoding: github.com/apoorvumang/prompt-lookup-decoding, with exact verification. */
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "error.h"

enum {
    most_rows = 8, /* of a step: the token and its guesses */
    shortest = 2,  /* tokens that must have occurred before */
    longest = 6,   /* and more of them say nothing more */
    n_classes = longest - shortest + 1,
    learns = 12,      /* a guess's outcome counts for so many */
    unknown_pass = 8, /* before costs are measured: reading the weights counts as so many rows */
};

struct ellm_lookup {
    ellm_context *context;
    ellm_lookup_mode mode;
    int32_t slot;
    size_t vocab;
    int32_t *history; /* tokens of the session, guesses left out */
    int32_t n_history;
    int32_t guesses[most_rows];
    int32_t n_guesses, n_computed, at; /* guessed, of these computed, and of these fed */
    int class;                         /* of the guesses: by the length of what occurred before */
    double right[n_classes];           /* how often a guess is right if all before it were */
    float *logits;                     /* (most_rows, vocab) */
    ellm_lookup_stats stats;
};

/* ---- guesses ---- */

/* Where the longest and latest earlier occurrence of the last tokens ends, and its length; 0 if there is none. */
static int32_t find(const ellm_lookup *lookup, int32_t *end) {
    const int32_t *tokens = lookup->history;
    int32_t n = lookup->n_history, best = shortest - 1;
    for (int32_t at = n - 1; at >= shortest && best < longest; at--) { /* tokens[at - length .. at) */
        int32_t length = 0;
        while (length < longest && length < at && tokens[at - 1 - length] == tokens[n - 1 - length]) {
            length++;
        }
        if (length > best) {
            best = length;
            *end = at;
        }
    }
    return best < shortest ? 0 : best;
}

static void guess(ellm_lookup *lookup) {
    int32_t end = 0, length = find(lookup, &end);
    lookup->at = lookup->n_computed = lookup->n_guesses = 0;
    if (length == 0) {
        return;
    }
    lookup->class = length - shortest;
    for (int32_t i = 0; i < most_rows - 1; i++) { /* what follows there may run into the guesses themselves */
        int32_t from = end + i;
        lookup->guesses[lookup->n_guesses++] =
            from < lookup->n_history ? lookup->history[from] : lookup->guesses[from - lookup->n_history];
    }
}

static void learn(ellm_lookup *lookup, bool right) {
    double *share = &lookup->right[lookup->class];
    *share += ((right ? 1 : 0) - *share) / learns;
}

static double cost(const ellm_lookup *lookup, int32_t rows) {
    double ns = ellm_context_cost_ns(lookup->context, rows);
    return ns > 0 ? ns : unknown_pass + rows;
}

/* How many guesses make the most tokens per time. */
static int32_t choose(const ellm_lookup *lookup) {
    int32_t most = ellm_context_spare(lookup->context, lookup->slot) - 1, best = 0;
    most = most < lookup->n_guesses ? most : lookup->n_guesses;
    if (lookup->mode == ELLM_LOOKUP_OFF || most <= 0) {
        return 0;
    }
    double tokens = 1, likely = 1, rate = lookup->mode == ELLM_LOOKUP_ON ? 0 : 1 / cost(lookup, 1);
    for (int32_t n = 1; n <= most; n++) {
        likely *= lookup->right[lookup->class];
        tokens += likely;
        double now = tokens / cost(lookup, n + 1);
        if (now > rate) {
            rate = now;
            best = n;
        }
    }
    return best;
}

/* ---- public ---- */

ellm_status ellm_lookup_open(ellm_context *context, int32_t slot, ellm_lookup_mode mode, ellm_lookup **result) {
    *result = NULL;
    if (ellm_session_truncate(context, slot, ellm_session_length(context, slot)) != ELLM_OK) {
        return ELLM_USAGE;
    }
    ellm_lookup *lookup = calloc(1, sizeof *lookup);
    if (lookup == NULL) {
        return ELLM_NO_MEMORY;
    }
    lookup->context = context;
    lookup->slot = slot;
    lookup->mode = mode;
    lookup->vocab = (size_t)ellm_context_vocab(context);
    lookup->history = calloc((size_t)ellm_context_length(context), sizeof *lookup->history);
    lookup->logits = mode == ELLM_LOOKUP_OFF ? NULL : calloc(most_rows * lookup->vocab, sizeof *lookup->logits);
    if (lookup->history == NULL || (lookup->logits == NULL && mode != ELLM_LOOKUP_OFF)) {
        ellm_lookup_close(lookup);
        return ELLM_NO_MEMORY;
    }
    for (int i = 0; i < n_classes; i++) {
        lookup->right[i] = 0.5;
    }
    *result = lookup;
    return ELLM_OK;
}

void ellm_lookup_close(ellm_lookup *lookup) {
    if (lookup != NULL) {
        free(lookup->history);
        free(lookup->logits);
        free(lookup);
    }
}

ellm_status ellm_lookup_begin(ellm_lookup *lookup, const int32_t *tokens, size_t n) {
    if ((size_t)ellm_session_length(lookup->context, lookup->slot) != n) {
        return ELLM_USAGE;
    }
    for (size_t i = 0; i < n; i++) {
        lookup->history[i] = tokens[i];
    }
    lookup->n_history = (int32_t)n;
    lookup->n_guesses = lookup->n_computed = lookup->at = 0;
    lookup->stats = (ellm_lookup_stats){0};
    return ELLM_OK;
}

void ellm_lookup_end(ellm_lookup *lookup) {
    lookup->n_guesses = lookup->n_computed = lookup->at = 0;
    (void)ellm_session_truncate(lookup->context, lookup->slot, lookup->n_history);
}

/* The token's step, with guesses behind it. */
static ellm_status compute(ellm_lookup *lookup, int32_t token, float *logits) {
    int32_t position = lookup->n_history;
    ellm_row rows[most_rows];
    lookup->history[lookup->n_history++] = token;
    if (lookup->mode != ELLM_LOOKUP_OFF) {
        guess(lookup);
    }
    int32_t n = choose(lookup);
    for (int32_t i = 0; i <= n; i++) {
        rows[i] = (ellm_row){.token = i == 0 ? token : lookup->guesses[i - 1],
                             .position = position + i,
                             .slot = lookup->slot,
                             .wants_logits = true};
    }
    float *to = n > 0 ? lookup->logits : logits;
    ellm_status status = ellm_context_eval(lookup->context, rows, (size_t)n + 1, to);
    if (status != ELLM_OK && status != ELLM_CANCELLED && n > 0) { /* a guess must not fail what would work without */
        (void)ellm_session_truncate(lookup->context, lookup->slot, position);
        n = 0;
        status = ellm_context_eval(lookup->context, rows, 1, logits);
    }
    if (status != ELLM_OK) {
        lookup->n_history--;
        ellm_lookup_end(lookup);
        return status;
    }
    lookup->n_computed = n;
    lookup->stats.n_steps++;
    lookup->stats.n_guessed += (uint64_t)n;
    if (n > 0) {
        memcpy(logits, lookup->logits, lookup->vocab * sizeof *logits);
    }
    return ELLM_OK;
}

ellm_status ellm_lookup_eval(ellm_lookup *lookup, int32_t token, float *logits) {
    if (lookup->n_history == ellm_context_length(lookup->context)) {
        return ELLM_CONTEXT_FULL;
    }
    ellm_status status = ELLM_OK;
    bool right = lookup->at < lookup->n_guesses && lookup->guesses[lookup->at] == token;
    if (lookup->at < lookup->n_guesses) {
        learn(lookup, right);
    }
    if (right && lookup->at < lookup->n_computed) {
        lookup->at++;
        lookup->stats.n_accepted++;
        lookup->history[lookup->n_history++] = token;
        memcpy(logits, lookup->logits + (size_t)lookup->at * lookup->vocab, lookup->vocab * sizeof *logits);
    } else {
        ellm_lookup_end(lookup);
        status = compute(lookup, token, logits);
    }
    lookup->stats.n_tokens += status == ELLM_OK;
    return status;
}

void ellm_lookup_get_stats(const ellm_lookup *lookup, ellm_lookup_stats *stats) {
    *stats = lookup->stats;
}
