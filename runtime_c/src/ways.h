/* ways.h: all the ways in which a text so far can be read by a grammar.
 *
 * A set of ways is a row of 16-bit numbers, for each way: its node, how many calls it is within, and where each of them
 * goes on, the outermost first. After a step every way's node takes a byte; whether the text may end is kept beside. */
#ifndef ELLM_WAYS_H
#define ELLM_WAYS_H

#include "matcher.h"

enum { n_slots = 4096, most_states = 60000, dead = 0, unknown = 0xFFFF, first_state = 1 };

typedef struct ways {
    uint16_t *data;
    size_t n, cap; /* numbers */
    uint32_t count;
    bool may_end;
} ways;

typedef struct state {
    uint32_t at, n, count; /* in `pool` */
    uint32_t mask;         /* in `masks`, + 1; 0: not made */
    uint32_t n_allowed;
    bool may_end;
} state;

struct ellm_grammar_cache {
    uint16_t kinds[256]; /* bytes that no node tells apart have one */
    uint32_t n_kinds;
    state *states;
    uint16_t *steps; /* (states, n_kinds) */
    uint32_t n_states, cap_states;
    uint16_t *pool;
    size_t n_pool, cap_pool;
    uint64_t *masks; /* (n_masks, words of a mask) */
    size_t n_masks, cap_masks;
    const ellm_vocabulary *vocabulary; /* whose masks those are */
    uint32_t *table;                   /* states by what they hold: a hash table of twice cap_states */
    ways work, next;
    uint32_t seen[n_slots], seen_at[n_slots], round; /* of the ways of one step */
    uint64_t n_looked, n_made;
    int64_t work_left;
    ellm_status status;
};

/* Room for `more` numbers; otherwise the cache's status is NO_MEMORY. */
bool ways_reserve(ellm_grammar_cache *c, ways *w, size_t more);
uint32_t ways_hash(const uint16_t *data, size_t n);
/* Empties a set that is about to be made. */
void ways_begin(ellm_grammar_cache *c, ways *w);
/* Adds the way at `node` within `depth` calls, which go on at `frames`, unless it is there or leads nowhere. */
void ways_add(const ellm_grammar *g, ways *w, ellm_node_id node, const uint16_t *frames, size_t depth);
/* Follows what takes no byte from all ways in `work`, which grows; those that take one come to `out`. */
void ways_follow(const ellm_grammar *g, ways *work, ways *out);
/* The ways after `byte` from those in data[0, n). */
void ways_step(const ellm_grammar *g, const uint16_t *data, size_t n, uint8_t byte, ways *out);

#endif
