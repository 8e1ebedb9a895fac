/* api.h: what requests mean, whichever connection they come from. OpenAI's API and Ollama's, answered from one model.
 *
 * A request is answered at once (api_handle returns NULL), or begins an exchange that the batch computes and
 * exchange_advance writes down as it comes. */
#ifndef EDGELLM_RT_API_H
#define EDGELLM_RT_API_H

#include "batch.h"
#include "json.h"
#include "metrics.h"
#include "reply.h"
#include "sensors.h"
#include "tool_calls.h"

enum {
    MOST_CHOICES = 16,
    REQUEST_REGION = 32 << 20,
    KNOWN_FORMS = 8,
    STUCK_MS = 60 * 1000, /* a step that takes longer is stuck */
};

/* A grammar, by the SHA-256 of what was asked for. */
typedef struct known_form {
    ellm_grammar *grammar; /* NULL: none */
    char key[65];
    uint64_t used; /* a count */
} known_form;

/* What every request is answered from; lives as long as the server. */
typedef struct service {
    const ellm_model *model;
    ellm_model_info info;
    int32_t context_length;
    batch *batch;
    metrics metrics;
    const char *name;              /* the model's, in the API */
    const char *sha256;            /* of its manifest */
    int64_t n_parameters, created; /* created: when the bundle was made, seconds since 1970 */
    uint64_t n_seeds;              /* drawn so far */
    ellm_vocabulary *vocabulary;   /* made for the first answer that has a form */
    known_form forms[KNOWN_FORMS]; /* compiled before */
    uint64_t n_forms;              /* asked for so far */
    bool is_stopping;
    sensors sensors; /* as last read */
} service;

typedef enum api_kind {
    OPENAI_CHAT,
    OPENAI_TEXT,
    OPENAI_EMBED, /* the last of OpenAI's */
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_CHAT,
    OLLAMA_TEXT
} api_kind;

/* One answer of an exchange. */
typedef struct choice {
    generation *answer;
    tool_reader tools;
    batch_news news;
    buffer text, calls; /* not written down yet; calls: elements of a JSON array, in the API's own form */
    buffer notes;       /* token_note after token_note */
    size_t n_calls;
    bool has_role, has_ended;
    struct exchange *exchange;
} choice;

typedef struct exchange {
    service *service;
    api_kind kind;
    bool stream, include_usage, in_base64;
    choice choices[MOST_CHOICES];
    int n_choices, n_each; /* n_each: answers to one prompt */
    char id[40];
    int64_t created;
    double began; /* clock_ms */
} exchange;

/* Answers a request, or begins to. The body's bytes are not needed afterwards. */
exchange *api_handle(service *s, const http_request *request, const char *body, size_t n_body, reply *r);
/* Writes down what has been computed since the last call. True: the answer is complete, or failed. */
bool exchange_advance(exchange *e, reply *r);
/* Also of one that is not complete: what is computed for it ends. */
void exchange_free(exchange *e);

/* The route's name for metrics, and whether it is answered without the token. */
const char *api_route(const http_request *request, bool *is_open);

/* An error in the form of the API that `path` belongs to. */
void api_fail(reply *r, const char *path, int status, const char *text);

#endif
