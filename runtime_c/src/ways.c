#include "ways.h"

#include <stdlib.h>
#include <string.h>

bool ways_reserve(ellm_grammar_cache *c, ways *w, size_t more) {
    if (w->n + more > w->cap) {
        size_t cap = (w->n + more) * 2 + 64;
        uint16_t *larger = realloc(w->data, cap * sizeof *larger);
        if (larger == NULL) {
            c->status = ELLM_NO_MEMORY;
            return false;
        }
        w->data = larger;
        w->cap = cap;
    }
    return true;
}

uint32_t ways_hash(const uint16_t *data, size_t n) { /* FNV-1a over 16 bits */
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ data[i]) * 16777619u;
    }
    return hash ^ hash >> 15;
}

void ways_add(const ellm_grammar *g, ways *w, ellm_node_id node, const uint16_t *frames, size_t depth) {
    ellm_grammar_cache *c = g->cache;
    if (g->nodes[node].need + depth > ELLM_GRAMMAR_DEPTH || c->status != ELLM_OK) {
        return;
    }
    c->work_left--;
    uint16_t new[ELLM_GRAMMAR_DEPTH + 2] = {node, (uint16_t)depth}; /* `frames` may lie in what is about to move */
    if (depth > 0) {
        memcpy(new + 2, frames, depth * sizeof *new);
    }
    if (!ways_reserve(c, w, depth + 2)) {
        return;
    }
    uint16_t *way = w->data + w->n;
    memcpy(way, new, (depth + 2) * sizeof *new);
    uint32_t slot = ways_hash(way, depth + 2) % n_slots;
    for (; c->seen[slot] == c->round; slot = (slot + 1) % n_slots) {
        const uint16_t *seen = w->data + c->seen_at[slot];
        if (seen[0] == node && seen[1] == depth && memcmp(seen + 2, way + 2, depth * sizeof *way) == 0) {
            return;
        }
    }
    if (++w->count > ELLM_MOST_WAYS || c->work_left < 0) {
        c->status = ELLM_GRAMMAR_LIMIT;
        return;
    }
    c->seen[slot] = c->round;
    c->seen_at[slot] = (uint32_t)w->n;
    w->n += depth + 2;
}

void ways_begin(ellm_grammar_cache *c, ways *w) {
    w->n = w->count = 0;
    w->may_end = false;
    if (++c->round == 0) {
        memset(c->seen, 0, sizeof c->seen);
        c->round = 1;
    }
}

void ways_follow(const ellm_grammar *g, ways *work, ways *out) {
    ellm_grammar_cache *c = g->cache;
    out->n = out->count = 0;
    out->may_end = false;
    for (size_t at = 0; at < work->n && c->status == ELLM_OK;) {
        uint16_t way[ELLM_GRAMMAR_DEPTH + 2];
        size_t depth = work->data[at + 1];
        memcpy(way, work->data + at, (depth + 2) * sizeof *way);
        const ellm_node *node = &g->nodes[way[0]];
        at += depth + 2;
        switch ((ellm_node_kind)node->kind) {
        case ELLM_FAIL: break;
        case ELLM_BYTES:
            if (ways_reserve(c, out, depth + 2)) {
                memcpy(out->data + out->n, way, (depth + 2) * sizeof *way);
                out->n += depth + 2;
                out->count++;
            }
            break;
        case ELLM_SPLIT:
            ways_add(g, work, node->a, way + 2, depth);
            ways_add(g, work, node->b, way + 2, depth);
            break;
        case ELLM_CALL:
            if (node->b == ELLM_NODE_END) { /* nothing is left to do behind it */
                ways_add(g, work, node->a, way + 2, depth);
            } else if (depth < ELLM_GRAMMAR_DEPTH && g->nodes[node->b].need != ELLM_NO_END) {
                way[2 + depth] = node->b;
                ways_add(g, work, node->a, way + 2, depth + 1);
            }
            break;
        case ELLM_END:
            if (depth == 0) {
                out->may_end = true;
            } else {
                ways_add(g, work, way[2 + depth - 1], way + 2, depth - 1);
            }
            break;
        }
    }
}

void ways_step(const ellm_grammar *g, const uint16_t *data, size_t n, uint8_t byte, ways *out) {
    ellm_grammar_cache *c = g->cache;
    ways_begin(c, &c->work);
    for (size_t at = 0; at < n && c->status == ELLM_OK; at += data[at + 1] + 2u) {
        const ellm_node *node = &g->nodes[data[at]];
        c->work_left--;
        if (byte >= node->least && byte <= node->most) {
            ways_add(g, &c->work, node->a, data + at + 2, data[at + 1]);
        }
    }
    ways_follow(g, &c->work, out);
}
