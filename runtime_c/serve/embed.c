/* Embeddings: the last hidden states of a text's tokens, pooled as the model says, of length 1. OpenAI's /v1/embeddings, Ollama's
 * /api/embed and its older /api/embeddings. */
#include "posix.h"

#include <stdlib.h>
#include <string.h>

#include "formats.h"
#include "json_write.h"
#include "program.h"

enum { most_texts = 2048 };

/* What a request gives: the tokens of all texts, and where each one ends. */
typedef struct texts {
    buffer tokens, ends;
    size_t n_tokens;
} texts;

static bool add(parsing *p, const ellm_json *input, bool cuts, texts *t) {
    generation one = {0};
    bool good = parse_prompt(p, "input", input, cuts, &one);
    if (good) {
        buffer_put(&t->tokens, (const char *)one.prompt, one.n_prompt * sizeof *one.prompt);
        t->n_tokens += one.n_prompt;
        buffer_put(&t->ends, (const char *)&t->n_tokens, sizeof t->n_tokens);
    }
    free(one.prompt);
    return good;
}

static bool add_all(parsing *p, const ellm_json *input, bool cuts, texts *t) {
    const ellm_json *first = input != NULL && input->kind == ELLM_JSON_ARRAY ? input->first : NULL;
    if (input == NULL || first == NULL || first->kind == ELLM_JSON_INT) {
        return input != NULL ? add(p, input, cuts, t) : parsing_fail(p, 400, "input", "the text is missing");
    }
    bool good = input->count <= most_texts || parsing_fail(p, 400, "input", "at most %d texts", (int)most_texts);
    for (; first != NULL && good; first = first->next) {
        good = add(p, first, cuts, t);
    }
    return good;
}

exchange *embed_begin(parsing *p, api_kind kind) {
    size_t width = ellm_model_embedding_size(p->service->model);
    int64_t dimensions = (int64_t)width;
    const ellm_json *coding = member(p->body, "encoding_format");
    bool cuts = kind != OPENAI_EMBED, in_base64 = ellm_json_equals(coding, "base64");
    texts t = {0};
    bool good = (width > 0 || parsing_fail(p, 501, NULL, "this bundle makes no embeddings; compile the model again"))
                && parse_model(p, "model") && parse_bool(p, p->body, "truncate", &cuts)
                && parse_int(p, p->body, "dimensions", dimensions, dimensions, &dimensions)
                && (coding == NULL || in_base64 || ellm_json_equals(coding, "float")
                    || parsing_fail(p, 400, "encoding_format", "'encoding_format' is \"float\" or \"base64\""))
                && add_all(p, member(p->body, kind == OLLAMA_EMBEDDINGS ? "prompt" : "input"), cuts, &t);
    generation *g = good ? parsing_generation(p) : NULL;
    double *sum = g != NULL ? calloc(width, sizeof *sum) : NULL;
    if (sum == NULL) {
        buffer_free(&t.tokens);
        buffer_free(&t.ends);
        generation_free(g);
        if (good) {
            (void)parsing_no_memory(p);
        }
        return NULL;
    }
    g->sum = sum;
    g->prompt = (int32_t *)(void *)t.tokens.data;
    g->n_prompt = t.n_tokens;
    g->ends = (size_t *)(void *)t.ends.data;
    g->n_ends = t.ends.n / sizeof *g->ends;
    exchange *e = exchange_begin(p, kind, &g, 1, 1);
    if (e != NULL) {
        e->in_base64 = in_base64;
    }
    return e;
}

static void put_base64(const unsigned char *data, size_t n, buffer *b) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    buffer_put(b, "\"", 1);
    for (size_t i = 0; i < n; i += 3) {
        unsigned long bits = (unsigned long)data[i] << 16 | (i + 1 < n ? (unsigned long)data[i + 1] << 8 : 0)
                             | (i + 2 < n ? data[i + 2] : 0);
        char four[] = {digits[bits >> 18], digits[bits >> 12 & 63], i + 1 < n ? digits[bits >> 6 & 63] : '=',
                       i + 2 < n ? digits[bits & 63] : '='};
        buffer_put(b, four, sizeof four);
    }
    buffer_put(b, "\"", 1);
}

static void put_vector(const exchange *e, const float *vector, size_t width, buffer *b) {
    if (e->in_base64) {
        put_base64((const unsigned char *)vector, width * sizeof *vector, b);
        return;
    }
    for (size_t i = 0; i < width; i++) {
        buffer_print(b, "%c%.9g", i == 0 ? '[' : ',', (double)vector[i]);
    }
    buffer_put(b, "]", 1);
}

void embed_whole(exchange *e, reply *r) {
    const choice *c = &e->choices[0];
    size_t width = ellm_model_embedding_size(e->service->model), n = c->notes.n / (width * sizeof(float));
    const float *vectors = (const float *)(const void *)c->notes.data;
    buffer b = {0};
    buffer_print(&b, e->kind == OLLAMA_EMBEDDINGS ? "{" : "{\"model\":");
    if (e->kind != OLLAMA_EMBEDDINGS) {
        buffer_put_string(&b, e->service->name);
        buffer_print(&b, e->kind == OPENAI_EMBED ? ",\"object\":\"list\",\"data\":[" : ",\"embeddings\":[");
    }
    for (size_t i = 0; i < n; i++) {
        buffer_put(&b, ",", i > 0);
        if (e->kind == OPENAI_EMBED) {
            buffer_print(&b, "{\"object\":\"embedding\",\"index\":%zu,", i);
        }
        buffer_print(&b, e->kind == OLLAMA_EMBED ? "" : "\"embedding\":");
        put_vector(e, vectors + i * width, width, &b);
        buffer_put(&b, "}", e->kind == OPENAI_EMBED);
    }
    size_t n_tokens = c->news.n_prompt;
    if (e->kind == OPENAI_EMBED) {
        buffer_print(&b, "],\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu}}", n_tokens, n_tokens);
    } else if (e->kind == OLLAMA_EMBED) {
        buffer_print(&b, "],\"total_duration\":%.0f,\"load_duration\":0,\"prompt_eval_count\":%zu}",
                     (c->news.times.ended - c->news.times.submitted) * 1e6, n_tokens);
    } else {
        buffer_put(&b, "}", 1);
    }
    reply_json(r, 200, &b);
}
