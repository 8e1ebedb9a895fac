/* request.h: the JSON of a request becomes what a generation wants. Clients' mistakes are answers, never failures. */
#ifndef EDGELLM_RT_REQUEST_H
#define EDGELLM_RT_REQUEST_H

#include "api.h"

/* A request being read. The functions below return false after the first mistake, which is then described here. */
typedef struct parsing {
    service *service;
    ellm_region region;
    ellm_json *body;   /* an object */
    int status;        /* to answer with, 0: all is well */
    const char *param; /* the member at fault, or NULL */
    const char *code;  /* OpenAI's name for the mistake, or NULL */
    char text[640];
} parsing;

/* Reads the body; it must be an object. Free it in any case. */
bool parsing_open(parsing *p, service *s, const char *body, size_t n_body);
void parsing_free(parsing *p);
void parsing_note(parsing *p, int status, const char *param, const char *format, ...) ELLM_PRINTF(4, 5);
/* The same as an expression that is false. */
#define parsing_fail(...) (parsing_note(__VA_ARGS__), false)

bool parsing_no_memory(parsing *p);         /* false */
generation *parsing_generation(parsing *p); /* an empty one, or NULL */

/* A member; NULL where it is missing or null. */
const ellm_json *member(const ellm_json *object, const char *key);
/* Typed members. A missing one leaves the result as it is. */
bool parse_bool(parsing *p, const ellm_json *object, const char *key, bool *result);
bool parse_int(parsing *p, const ellm_json *object, const char *key, int64_t least, int64_t most, int64_t *result);
bool parse_float(parsing *p, const ellm_json *object, const char *key, double least, double most, float *result);
/* A text or an array of texts that end an answer. */
bool parse_stops(parsing *p, const ellm_json *object, generation *g);
/* temperature, top_p and so on, by the names that both APIs share; then a seed. */
bool parse_sampling(parsing *p, const ellm_json *object, generation *g);
/* True if the request's model is the one that is served; 404 otherwise. */
bool parse_model(parsing *p, const char *key);

/* Text to the generation's prompt. special: BOS and the like are added. Sets no limit on its length. */
bool parse_text(parsing *p, const char *text, size_t n_bytes, bool special, generation *g);
/* A member `key` that is a text, or a list of token ids; cuts: what does not fit the context is left out. */
bool parse_prompt(parsing *p, const char *key, const ellm_json *prompt, bool cuts, generation *g);
/* 400 where the prompt leaves no room in the context, or is empty. */
bool check_room(parsing *p, const generation *g);

/* Renders `messages` (and `tools`, `chat_template_kwargs`) with the chat template. may_drop: the oldest turns are left out
 * where they do not fit, the system prompt stays. */
bool parse_messages(parsing *p, const ellm_json *messages, const ellm_json *tools, bool may_drop, generation *g);

/* Makes the exchange of `n` times one answer, and hands it to the batch. `first` is its own from now on, also when this
 * fails. NULL: 503 stands in p. */
exchange *exchange_begin(parsing *p, api_kind kind, generation *const *answers, int n_answers, int64_t n_each);

#endif
