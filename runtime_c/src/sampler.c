/* Picks the next token. The order of the stages is Hugging Face's: repetition penalty, presence and frequency
 * penalties, bias, temperature, top-k, top-p, min-p, one draw.
 *
 * No stage sorts the vocabulary. The candidates are cut by value: top-k by quickselect, top-p by a histogram over
 * probabilities' exponents that leaves few to sort, min-p by comparison. exp is the polynomial of FORMAT.md's
 * arithmetic and every float operation is rounded once, so that a seed gives the same answer on every board. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "edgellm.h"
#include "exponential.h"

enum { default_window = 64, greatest_window = 32767, done = 0x8000 /* flag in seen[] */ };

typedef struct candidate {
    float logit, weight; /* weight = exp(logit - largest), not normalised */
    int32_t token;
} candidate;

struct ellm_sampler {
    ellm_sampler_options options;
    int32_t vocab;
    uint64_t random[2];    /* PCG-XSH-RR 64/32: state, increment */
    candidate *candidates; /* (vocab,) */
    uint16_t *seen;        /* (vocab,) how often a token lies in the window */
    int32_t *window;       /* ring of the last accepted tokens */
    int32_t n_window, next;
};

/* ---- random numbers: O'Neill, PCG (2014) ---- */

static uint32_t draw_bits(ellm_sampler *s) {
    uint64_t old = s->random[0];
    s->random[0] = old * UINT64_C(6364136223846793005) + s->random[1];
    uint32_t mixed = (uint32_t)(((old >> 18) ^ old) >> 27), turn = (uint32_t)(old >> 59);
    return (mixed >> turn) | (mixed << ((32u - turn) & 31u));
}

static void seed_bits(ellm_sampler *s, uint64_t seed) {
    s->random[0] = 0;
    s->random[1] = UINT64_C(0xda3e39cb94b95bdb) | 1;
    draw_bits(s);
    s->random[0] += seed;
    draw_bits(s);
}

/* Uniform in [0, 1) with 53 bits; exact in double. */
static double draw(ellm_sampler *s) {
    uint64_t high = draw_bits(s) >> 5, low = draw_bits(s) >> 6;
    return (double)((high << 26) | low) * (1.0 / 9007199254740992.0);
}

/* ---- life ---- */

static bool sane(float x, float least, float most) {
    return x >= least && x <= most;
}

ellm_status ellm_sampler_open(int32_t vocab_size, const ellm_sampler_options *options, ellm_sampler **sampler) {
    *sampler = NULL;
    static const ellm_sampler_options greedy = {.top_p = 1.0f, .repetition_penalty = 1.0f};
    const ellm_sampler_options *o = options == NULL ? &greedy : options;
    if (vocab_size < 1 || !sane(o->temperature, 0.0f, 1e4f) || o->top_k < 0 || !sane(o->top_p, 0.0f, 1.0f)
        || !sane(o->min_p, 0.0f, 1.0f) || !sane(o->repetition_penalty, 1e-4f, 1e4f)
        || !sane(o->presence_penalty, -1e4f, 1e4f) || !sane(o->frequency_penalty, -1e4f, 1e4f) || o->penalty_window < 0
        || o->penalty_window > greatest_window || (o->n_bias != 0 && o->bias == NULL)) {
        return ELLM_USAGE;
    }
    for (size_t i = 0; i < o->n_bias; i++) {
        if (o->bias[i].token < 0 || o->bias[i].token >= vocab_size) {
            return ELLM_TOKEN_RANGE;
        }
        if (isnan(o->bias[i].bias)) {
            return ELLM_USAGE;
        }
    }
    ellm_sampler *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return ELLM_NO_MEMORY;
    }
    s->options = *o;
    s->vocab = vocab_size;
    if (s->options.penalty_window == 0) {
        s->options.penalty_window = default_window;
    }
    s->candidates = calloc((size_t)vocab_size, sizeof *s->candidates);
    s->seen = calloc((size_t)vocab_size, sizeof *s->seen);
    s->window = calloc((size_t)s->options.penalty_window, sizeof *s->window);
    if (s->candidates == NULL || s->seen == NULL || s->window == NULL) {
        ellm_sampler_close(s);
        return ELLM_NO_MEMORY;
    }
    seed_bits(s, o->seed);
    *sampler = s;
    return ELLM_OK;
}

void ellm_sampler_close(ellm_sampler *sampler) {
    if (sampler != NULL) {
        free(sampler->candidates);
        free(sampler->seen);
        free(sampler->window);
        free(sampler);
    }
}

void ellm_sampler_accept(ellm_sampler *sampler, int32_t token) {
    if (token < 0 || token >= sampler->vocab) {
        return;
    }
    int32_t capacity = sampler->options.penalty_window;
    if (sampler->n_window == capacity) {
        sampler->seen[sampler->window[sampler->next]]--;
    } else {
        sampler->n_window++;
    }
    sampler->window[sampler->next] = token;
    sampler->seen[token]++;
    sampler->next = sampler->next + 1 == capacity ? 0 : sampler->next + 1;
}

/* ---- stages ---- */

static void penalise(ellm_sampler *s, float *logits) {
    const ellm_sampler_options *o = &s->options;
    if (o->repetition_penalty != 1.0f || o->presence_penalty != 0.0f || o->frequency_penalty != 0.0f) {
        for (int32_t i = 0; i < s->n_window; i++) {
            int32_t token = s->window[i];
            if ((s->seen[token] & done) == 0) { /* once per token, however often it lies in the window */
                float x = logits[token];
                x = x > 0.0f ? x / o->repetition_penalty : x * o->repetition_penalty;
                float counted = o->frequency_penalty * (float)s->seen[token];
                logits[token] = x - o->presence_penalty - counted;
                s->seen[token] |= done;
            }
        }
        for (int32_t i = 0; i < s->n_window; i++) {
            s->seen[s->window[i]] &= (uint16_t)~done;
        }
    }
    for (size_t i = 0; i < o->n_bias; i++) {
        logits[o->bias[i].token] += o->bias[i].bias;
    }
}

static int32_t greatest(const ellm_sampler *s, const float *logits) {
    int32_t best = 0;
    for (int32_t i = 1; i < s->vocab; i++) {
        /* NaN never wins unless there is nothing else. */
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i]))) {
            best = i;
        }
    }
    return best;
}

/* Descending logit, then ascending id: a total order, so that every stage is deterministic. */
static bool before(const candidate *a, const candidate *b) {
    return a->logit > b->logit || (!(a->logit < b->logit) && a->token < b->token);
}

static void swap(candidate *a, candidate *b) {
    candidate t = *a;
    *a = *b;
    *b = t;
}

/* Hoare's quickselect, median of three: the first k of n come to the front, in any order. */
static void select_first(candidate *c, int32_t n, int32_t k) {
    int32_t low = 0, high = n - 1;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (before(&c[middle], &c[low])) swap(&c[middle], &c[low]);
        if (before(&c[high], &c[low])) swap(&c[high], &c[low]);
        if (before(&c[high], &c[middle])) swap(&c[high], &c[middle]);
        candidate pivot = c[middle];
        int32_t i = low, j = high;
        while (i <= j) {
            while (before(&c[i], &pivot)) i++;
            while (before(&pivot, &c[j])) j--;
            if (i <= j) {
                swap(&c[i], &c[j]);
                i++;
                j--;
            }
        }
        if (k - 1 <= j) {
            high = j;
        } else if (k - 1 >= i) {
            low = i;
        } else {
            return;
        }
    }
}

/* Heapsort in place (qsort may allocate). */
static void sort(candidate *c, int32_t n) {
    for (int32_t start = n / 2, end = n; end > 1;) {
        if (start > 0) {
            start--;
        } else {
            end--;
            swap(&c[0], &c[end]);
        }
        for (int32_t parent = start;;) {
            int32_t child = 2 * parent + 1;
            if (child >= end) break;
            if (child + 1 < end && before(&c[child], &c[child + 1])) child++;
            if (!before(&c[parent], &c[child])) break;
            swap(&c[parent], &c[child]);
            parent = child;
        }
    }
}

/* Leaves the smallest set of most likely candidates whose share reaches p; at least one. Buckets by exponent of
 * the weight (powers of two below the largest) tell how far down to look before anything is sorted. */
static int32_t cut_top_p(candidate *c, int32_t n, float p) {
    enum { buckets = 128 };
    double mass[buckets] = {0}, total = 0; /* weights lie in [0, 1]: biased exponents 0 to 127 */
    for (int32_t i = 0; i < n; i++) {
        mass[127 - (ellm_float_bits(c[i].weight) >> 23)] += (double)c[i].weight;
        total += (double)c[i].weight;
    }
    double want = (double)p * total, sum = mass[0];
    int32_t last = 0;
    while (sum < want && last < buckets - 1) {
        sum += mass[++last];
    }
    /* One bucket more than needed absorbs the rounding of sums taken in another order. */
    float least = last + 1 < buckets - 2 ? ellm_power_of_two(-(last + 1)) : 0.0f;
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        if (c[i].weight >= least) {
            swap(&c[kept++], &c[i]);
        }
    }
    sort(c, kept);
    sum = 0;
    for (int32_t i = 0; i < kept; i++) {
        sum += (double)c[i].weight;
        if (sum >= want) {
            return i + 1;
        }
    }
    return kept;
}

int32_t ellm_sampler_pick(ellm_sampler *sampler, float *logits) {
    const ellm_sampler_options *o = &sampler->options;
    penalise(sampler, logits);
    int32_t best = greatest(sampler, logits);
    if (!(o->temperature > 0.0f) || o->top_k == 1 || !isfinite(logits[best])) {
        return best;
    }
    candidate *c = sampler->candidates;
    float top = logits[best] / o->temperature;
    int32_t n = 0;
    for (int32_t i = 0; i < sampler->vocab; i++) {
        logits[i] /= o->temperature;
        if (logits[i] - top > -87.0f) { /* the rest (and NaN) has weight 0 in float32 */
            c[n++] = (candidate){.logit = logits[i], .token = i};
        }
    }
    if (n == 0) { /* so low a temperature that the division overflowed */
        return best;
    }
    if (o->top_k > 0 && o->top_k < n) {
        select_first(c, n, o->top_k);
        n = o->top_k;
    }
    for (int32_t i = 0; i < n; i++) {
        c[i].weight = ellm_exponential(c[i].logit - top);
    }
    if (o->top_p < 1.0f) {
        n = cut_top_p(c, n, o->top_p);
    }
    if (o->min_p > 0.0f) {
        int32_t kept = 0; /* the largest weight is exp(0) = 1 */
        for (int32_t i = 0; i < n; i++) {
            if (c[i].weight >= o->min_p) {
                swap(&c[kept++], &c[i]);
            }
        }
        n = kept;
    }
    double total = 0;
    for (int32_t i = 0; i < n; i++) {
        total += (double)c[i].weight;
    }
    double rest = draw(sampler) * total;
    for (int32_t i = 0; i < n; i++) {
        rest -= (double)c[i].weight;
        if (rest < 0) {
            return c[i].token;
        }
    }
    return n > 0 ? c[n - 1].token : best;
}
