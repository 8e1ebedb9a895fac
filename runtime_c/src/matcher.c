/* States and masks, kept with the grammar, and answers. */
#include "matcher.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vocabulary.h"
#include "ways.h"

struct ellm_matcher {
    ellm_grammar *grammar;
    const ellm_vocabulary *vocabulary;
    ways now, other;
    uint64_t n_masks, n_made;
};

/* ---- states ---- */

static ellm_grammar_cache *new_cache(const ellm_grammar *g) {
    ellm_grammar_cache *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    bool begins[257] = {true}; /* a byte that some node tells from the one before */
    for (uint32_t i = 0; i < g->n_nodes; i++) {
        if (g->nodes[i].kind == ELLM_BYTES) {
            begins[g->nodes[i].least] = true;
            begins[g->nodes[i].most + 1] = true;
        }
    }
    for (int i = 0; i < 256; i++) {
        c->n_kinds += begins[i];
        c->kinds[i] = (uint16_t)(c->n_kinds - 1);
    }
    c->n_states = first_state;
    return c;
}

static void cache_free(ellm_grammar_cache *c) {
    if (c != NULL) {
        free(c->states);
        free(c->steps);
        free(c->pool);
        free(c->masks);
        free(c->table);
        free(c->work.data);
        free(c->next.data);
        free(c);
    }
}

static bool grow_states(ellm_grammar_cache *c) {
    uint32_t cap = c->cap_states > 0 ? c->cap_states * 2 : 256;
    state *states = realloc(c->states, cap * sizeof *states);
    c->states = states != NULL ? states : c->states;
    uint16_t *steps = realloc(c->steps, (size_t)cap * c->n_kinds * sizeof *steps);
    c->steps = steps != NULL ? steps : c->steps;
    uint32_t *table = calloc((size_t)cap * 2, sizeof *table);
    if (states == NULL || steps == NULL || table == NULL) {
        free(table);
        c->status = ELLM_NO_MEMORY;
        return false;
    }
    free(c->table);
    c->table = table;
    c->cap_states = cap;
    for (uint32_t i = first_state; i < c->n_states; i++) {
        uint32_t slot = ways_hash(c->pool + states[i].at, states[i].n) % (cap * 2);
        while (table[slot] != 0) {
            slot = (slot + 1) % (cap * 2);
        }
        table[slot] = i;
    }
    return true;
}

/* The state that holds these ways; `dead` for none and after a failure. */
static uint32_t state_of(ellm_grammar_cache *c, const ways *w) {
    if ((w->count == 0 && !w->may_end) || c->status != ELLM_OK) {
        return dead;
    }
    if (c->n_states + 1 >= c->cap_states && !grow_states(c)) {
        return dead;
    }
    uint32_t size = c->cap_states * 2, slot = ways_hash(w->data, w->n) % size;
    for (; c->table[slot] != 0; slot = (slot + 1) % size) {
        const state *s = &c->states[c->table[slot]];
        if (s->n == w->n && s->may_end == w->may_end
            && (w->n == 0 || memcmp(c->pool + s->at, w->data, w->n * sizeof *w->data) == 0)) {
            return c->table[slot];
        }
    }
    if (c->n_pool + w->n > c->cap_pool) {
        size_t cap = (c->n_pool + w->n) * 2 + 1024;
        uint16_t *larger = realloc(c->pool, cap * sizeof *larger);
        if (larger == NULL) {
            c->status = ELLM_NO_MEMORY;
            return dead;
        }
        c->pool = larger;
        c->cap_pool = cap;
    }
    if (c->n_states == most_states || c->n_pool + w->n > UINT32_MAX) {
        c->status = ELLM_GRAMMAR_LIMIT;
        return dead;
    }
    uint32_t id = c->n_states++;
    c->table[slot] = id;
    c->states[id] = (state){.at = (uint32_t)c->n_pool, .n = (uint32_t)w->n, .count = w->count, .may_end = w->may_end};
    if (w->n > 0) {
        memcpy(c->pool + c->n_pool, w->data, w->n * sizeof *w->data);
        c->n_pool += w->n;
    }
    memset(c->steps + (size_t)id * c->n_kinds, 0xFF, c->n_kinds * sizeof *c->steps);
    return id;
}

static uint32_t state_after(const ellm_grammar *g, uint32_t from, uint8_t byte) {
    ellm_grammar_cache *c = g->cache;
    size_t place = (size_t)from * c->n_kinds + c->kinds[byte];
    if (c->steps[place] == unknown) {
        ways_step(g, c->pool + c->states[from].at, c->states[from].n, byte, &c->next);
        uint32_t to = state_of(c, &c->next);
        if (c->status != ELLM_OK) {
            return dead;
        }
        c->steps[place] = (uint16_t)to;
    }
    return c->steps[place];
}

/* ---- masks ---- */

static size_t mask_words(const ellm_vocabulary *v) {
    return ((size_t)v->n_tokens + 63) / 64;
}

/* Forgets states and masks where they have grown too large, or are of another vocabulary. */
static void tidy(ellm_grammar_cache *c, const ellm_vocabulary *v) {
    size_t bytes = c->n_states * (sizeof(state) + c->n_kinds * sizeof *c->steps + 8) + c->n_pool * sizeof *c->pool
                   + c->n_masks * mask_words(v) * sizeof *c->masks;
    if (bytes <= ELLM_CACHE_BYTES && c->n_states < most_states / 2 && c->vocabulary == v) {
        return;
    }
    if (c->cap_states > 0) {
        memset(c->table, 0, (size_t)c->cap_states * 2 * sizeof *c->table);
    }
    c->n_states = first_state;
    c->n_pool = c->n_masks = 0;
    if (c->vocabulary != v) {
        free(c->masks);
        c->masks = NULL;
        c->cap_masks = 0;
        c->vocabulary = v;
    }
}

/* The matcher's ways, each node by the first that no token can tell from it. */
static uint32_t state_now(ellm_matcher *m) {
    const ellm_grammar *g = m->grammar;
    ellm_grammar_cache *c = g->cache;
    ways_begin(c, &c->work);
    for (size_t at = 0; at < m->now.n; at += m->now.data[at + 1] + 2u) {
        uint16_t frames[ELLM_GRAMMAR_DEPTH];
        size_t depth = m->now.data[at + 1];
        for (size_t i = 0; i < depth; i++) {
            frames[i] = g->nodes[m->now.data[at + 2 + i]].like;
        }
        ways_add(g, &c->work, m->now.data[at], frames, depth);
    }
    c->work.may_end = m->now.may_end;
    return state_of(c, &c->work);
}

/* How many characters of a JSON string may follow, whichever they are. */
static uint32_t free_characters(const ellm_grammar *g, const state *s) {
    uint32_t most = 0;
    const uint16_t *data = g->cache->pool + s->at;
    for (size_t at = 0; at < s->n && g->plain != ELLM_NODE_FAIL; at += data[at + 1] + 2u) {
        size_t depth = data[at + 1];
        if (data[at] == g->plain && depth > 0) {
            uint32_t room = g->nodes[data[at + 1 + depth]].room + 1u;
            most = room > most ? room : most;
        }
    }
    return most;
}

static void walk(const ellm_grammar *g, const ellm_words *words, uint32_t start, uint64_t *mask) {
    uint32_t at[ELLM_GRAMMAR_FAR + 1] = {start}, reached = 0;
    for (uint32_t i = 0; i < words->n && g->cache->status == ELLM_OK; i++) {
        const ellm_word *word = &words->words[i];
        if (word->shared > reached) {
            continue; /* the same bytes as before do not lead there */
        }
        uint32_t depth = word->shared, now = at[depth];
        for (; depth < word->n; depth++) {
            now = state_after(g, now, word->text[depth]);
            if (now == dead) {
                break;
            }
            at[depth + 1] = now;
        }
        reached = depth;
        if (depth == word->n) {
            mask[word->token / 64] |= UINT64_C(1) << word->token % 64;
        } else if (depth == 0) {
            i = words->first[word->text[0] + 1] - 1; /* nothing begins so */
        }
    }
}

static uint32_t count_bits(const uint64_t *mask, size_t n) {
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++) {
        count += (uint32_t)__builtin_popcountll(mask[i]);
    }
    return count;
}

static void fill_mask(const ellm_grammar *g, const ellm_vocabulary *v, uint32_t id, uint64_t *mask) {
    const ellm_grammar_cache *c = g->cache;
    uint32_t most = free_characters(g, &c->states[id]);
    bool may_end = c->states[id].may_end;
    if (most > 0 || may_end) {
        for (int32_t i = 0; i < v->n_tokens; i++) {
            uint8_t plain = v->plain[i];
            bool fits = plain == ELLM_WORD_STOPS ? may_end : plain > 0 && plain <= most;
            mask[i / 64] |= (uint64_t)fits << i % 64;
        }
    }
    walk(g, most > 0 ? &v->rough : &v->all, id, mask);
}

ellm_status ellm_matcher_mask(ellm_matcher *m, const uint64_t **mask, uint32_t *n_allowed) {
    const ellm_vocabulary *v = m->vocabulary;
    ellm_grammar_cache *c = m->grammar->cache;
    size_t n_words = mask_words(v);
    tidy(c, v);
    c->status = ELLM_OK;
    c->work_left = ELLM_MASK_WORK;
    uint32_t id = state_now(m);
    if (c->status == ELLM_OK && id == dead) {
        return ELLM_GRAMMAR_STUCK;
    }
    m->n_masks++;
    if (c->status == ELLM_OK && c->states[id].mask == 0) {
        if (c->n_masks == c->cap_masks || c->masks == NULL) {
            size_t cap = c->cap_masks * 2 + 4;
            uint64_t *larger = realloc(c->masks, cap * n_words * sizeof *larger);
            if (larger == NULL) {
                return ELLM_NO_MEMORY;
            }
            c->masks = larger;
            c->cap_masks = cap;
        }
        uint64_t *made = c->masks + c->n_masks * n_words;
        memset(made, 0, n_words * sizeof *made);
        m->n_made++;
        fill_mask(m->grammar, v, id, made);
        if (c->status == ELLM_OK) {
            c->states[id].mask = (uint32_t)++c->n_masks;
            c->states[id].n_allowed = count_bits(made, n_words);
        }
    }
    if (c->status != ELLM_OK || c->masks == NULL) {
        return c->status != ELLM_OK ? c->status : ELLM_NO_MEMORY;
    }
    *mask = c->masks + (c->states[id].mask - 1) * n_words;
    *n_allowed = c->states[id].n_allowed;
    return *n_allowed > 0 ? ELLM_OK : ELLM_GRAMMAR_STUCK;
}

ellm_status ellm_matcher_apply(ellm_matcher *m, float *logits) {
    const uint64_t *mask;
    uint32_t n_allowed;
    ellm_status status = ellm_matcher_mask(m, &mask, &n_allowed);
    int32_t n = m->vocabulary->n_tokens;
    for (int32_t i = 0; i < n && status == ELLM_OK; i += 64) {
        uint64_t bits = mask[i / 64];
        int32_t end = n - i < 64 ? n : i + 64;
        for (int32_t k = i; k < end && bits != UINT64_MAX; k++) {
            logits[k] = (bits >> (k - i) & 1) != 0 ? logits[k] : -INFINITY;
        }
    }
    return status;
}

/* ---- an answer ---- */

ellm_status ellm_matcher_open(ellm_grammar *grammar, const ellm_vocabulary *vocabulary, ellm_matcher **matcher) {
    ellm_matcher *m = *matcher = calloc(1, sizeof *m);
    if (grammar->cache == NULL) {
        grammar->cache = new_cache(grammar);
    }
    ellm_grammar_cache *c = grammar->cache;
    if (m == NULL || c == NULL) {
        free(m);
        *matcher = NULL;
        return ELLM_NO_MEMORY;
    }
    m->grammar = ellm_grammar_share(grammar);
    m->vocabulary = vocabulary;
    c->status = ELLM_OK;
    c->work_left = ELLM_MASK_WORK;
    ways_begin(c, &c->work);
    ways_add(grammar, &c->work, grammar->root, NULL, 0);
    ways_follow(grammar, &c->work, &m->now);
    ellm_status status = c->status;
    if (status != ELLM_OK) {
        ellm_matcher_close(m);
        *matcher = NULL;
    }
    return status;
}

void ellm_matcher_close(ellm_matcher *m) {
    if (m != NULL) {
        ellm_grammar_close(m->grammar);
        free(m->now.data);
        free(m->other.data);
        free(m);
    }
}

bool ellm_matcher_feed(ellm_matcher *m, const uint8_t *text, size_t n_bytes) {
    ellm_grammar_cache *c = m->grammar->cache;
    ways before = {0}, *from = &m->now, *to = &m->other;
    c->status = ELLM_OK;
    c->work_left = ELLM_MASK_WORK;
    if (n_bytes > 1 && !ways_reserve(c, &before, m->now.n)) {
        return false;
    }
    if (n_bytes > 1 && m->now.n > 0) { /* to go back to */
        memcpy(before.data, m->now.data, m->now.n * sizeof *before.data);
    }
    before.n = m->now.n;
    before.count = m->now.count;
    before.may_end = m->now.may_end;
    size_t i = 0;
    for (; i < n_bytes; i++) {
        ways_step(m->grammar, from->data, from->n, text[i], to);
        if (c->status != ELLM_OK || (to->count == 0 && !to->may_end)) {
            break;
        }
        ways swapped = m->now;
        m->now = m->other;
        m->other = swapped;
    }
    if (i < n_bytes && i > 0) {
        free(m->now.data);
        m->now = before;
        return false;
    }
    free(before.data);
    return i == n_bytes;
}

ellm_status ellm_matcher_accept(ellm_matcher *m, int32_t token) {
    const ellm_vocabulary *v = m->vocabulary;
    if (token < 0 || token >= v->n_tokens) {
        return ELLM_TOKEN_RANGE;
    }
    if (v->plain[token] == ELLM_WORD_STOPS) {
        return m->now.may_end ? ELLM_OK : ELLM_GRAMMAR_STUCK;
    }
    bool good = v->n_bytes[token] > 0 && ellm_matcher_feed(m, v->text + v->places[token], v->n_bytes[token]);
    return good ? ELLM_OK : m->grammar->cache->status != ELLM_OK ? m->grammar->cache->status : ELLM_GRAMMAR_STUCK;
}

bool ellm_matcher_is_given_up(const ellm_matcher *m) {
    return m->grammar->cache->status != ELLM_OK;
}

bool ellm_matcher_may_end(const ellm_matcher *m) {
    return m->now.may_end;
}

bool ellm_matcher_is_done(const ellm_matcher *m) {
    return m->now.may_end && m->now.count == 0;
}

void ellm_matcher_get_stats(const ellm_matcher *m, uint64_t *n_masks, uint64_t *n_made) {
    *n_masks = m->n_masks;
    *n_made = m->n_made;
}

/* ---- grammars ---- */

ellm_grammar *ellm_grammar_share(ellm_grammar *grammar) {
    atomic_fetch_add(&grammar->n_users, 1);
    return grammar;
}

void ellm_grammar_close(ellm_grammar *grammar) {
    if (grammar != NULL && atomic_fetch_sub(&grammar->n_users, 1) == 1) {
        cache_free(grammar->cache);
        free(grammar->nodes);
        free(grammar);
    }
}

ellm_status ellm_grammar_open_text(const char *text, size_t n_bytes, ellm_grammar **grammar, ellm_error *error) {
    ellm_builder b;
    ellm_node_id root = ELLM_NODE_FAIL;
    *grammar = NULL;
    if (ellm_builder_open(&b, error) == ELLM_OK) {
        root = ellm_put_grammar(&b, text, n_bytes);
    }
    return ellm_builder_close(&b, root, grammar);
}

ellm_status ellm_grammar_open_schema(const char *json, size_t n_bytes, ellm_grammar **grammar, ellm_error *error) {
    ellm_builder b;
    ellm_region region;
    ellm_json *schema = NULL;
    *grammar = NULL;
    ellm_region_init(&region, 8u << 20);
    ellm_status status =
        n_bytes > ELLM_GRAMMAR_BYTES
            ? ellm_fail(error, ELLM_GRAMMAR_LIMIT, "a schema has at most %d bytes", (int)ELLM_GRAMMAR_BYTES)
            : ellm_json_read(json, n_bytes, &region, ELLM_GRAMMAR_INVALID, "schema", &schema, error);
    if (status == ELLM_OK) {
        ellm_node_id root = ELLM_NODE_FAIL;
        if (ellm_builder_open(&b, error) == ELLM_OK) {
            root = ellm_put_schema(&b, schema, "#", ELLM_NODE_END);
        }
        status = ellm_builder_close(&b, root, grammar);
    }
    ellm_region_free(&region);
    return status;
}
