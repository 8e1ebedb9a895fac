/* chat.h: what the two faces of `edgellm-rt chat` share. */
#ifndef EDGELLM_RT_CHAT_H
#define EDGELLM_RT_CHAT_H

#include "conversation.h"
#include "lines.h"

typedef struct chat chat;
struct chat {
    const settings *settings;
    engine engine;
    conversation history;
    buffer text; /* of the answer so far */
    ellm_status (*show)(chat *c, const char *text, size_t n_bytes, ellm_error *error);
    ellm_status (*notice)(chat *c, const char *text, ellm_error *error);
    bool (*poll)(chat *c); /* whether to stop the answer; may be NULL */
    void *user;
};

/* Asks, streams the answer through c->show and keeps both in the history. The caller frees a->ids. */
ellm_status chat_answer(chat *c, const char *question, size_t n_bytes, answer *a, size_t *n_prompt, ellm_error *error);

/* Takes up the conversation that --session names, and leaves it there at the end. */
ellm_status session_begin(chat *c, ellm_error *error);
ellm_status session_end(chat *c, ellm_error *error);

/* The protocol of --jsonl until standard input ends. */
ellm_status chat_jsonl(chat *c, ellm_error *error);

#endif
