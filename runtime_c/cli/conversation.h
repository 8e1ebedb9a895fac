/* conversation.h: a history of messages, and the prompt they make. */
#ifndef EDGELLM_RT_CONVERSATION_H
#define EDGELLM_RT_CONVERSATION_H

#include "engine.h"
#include "json.h"

typedef struct turn {
    char *user, *assistant; /* assistant: NULL while it is being answered */
    size_t n_user, n_assistant;
} turn;

typedef struct conversation {
    const char *extra; /* JSON object of further variables of the template, or NULL; the caller's */
    char *system;      /* NULL: the bundle's, if it ships one */
    size_t n_system;
    turn *turns;
    size_t n_turns, cap;
} conversation;

void conversation_system(conversation *c, const char *text, size_t n_bytes);
void conversation_ask(conversation *c, const char *text, size_t n_bytes);
/* Completes the last turn. An empty answer takes the question back: nothing came of it. */
void conversation_answer(conversation *c, const char *text, size_t n_bytes);
/* Forgets the turns; the system prompt stays. */
void conversation_reset(conversation *c);
void conversation_free(conversation *c);

/* A JSON array of messages, and back: perhaps one of role system, then questions that each have an answer. False, and
 * nothing changed, where `messages` is something else. */
void conversation_write(const conversation *c, buffer *json);
bool conversation_read(conversation *c, const ellm_json *messages);

/* The prompt for the last turn's answer, by the model's chat template, or as a plain transcript where it has none.
 * Where it does not fit the context with `reserve` positions to spare, the oldest turns are dropped until it fills
 * at most half of it, so that not every turn computes the history anew; their number goes to n_dropped.
 * CONTEXT_FULL if even the last question alone does not fit. ids: the caller frees them. */
ellm_status conversation_prompt(conversation *c, engine *e, size_t reserve, int32_t **ids, size_t *n, size_t *n_dropped,
                                ellm_error *error);

/* Where a model without a template ends its answer. */
#define TRANSCRIPT_STOP "\nUser:"

#endif
