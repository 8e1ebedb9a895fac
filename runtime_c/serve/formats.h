/* formats.h: the two APIs that api.c puts together: how each reads its requests and writes its answers. */
#ifndef EDGELLM_RT_FORMATS_H
#define EDGELLM_RT_FORMATS_H

#include "request.h"

/* Read a request. NULL: p says why not, or `r` has the answer already. */
exchange *openai_chat(parsing *p);
exchange *openai_text(parsing *p);
exchange *ollama_chat(parsing *p, reply *r);
exchange *ollama_text(parsing *p, reply *r);

exchange *embed_begin(parsing *p, api_kind kind);

/* Write a whole answer. */
void openai_fail(reply *r, int status, const char *param, const char *code, const char *text);
void openai_models(const service *s, reply *r, const char *id); /* id: one of them, or NULL */
void ollama_fail(reply *r, int status, const char *text);
void ollama_models(const service *s, bool loaded, reply *r); /* loaded: those, else all; there is one */
void ollama_show(const service *s, reply *r);
void ollama_pull(reply *r, bool stream);

/* Write an exchange down. `delta`: what a choice has got since the last call, while it streams; `ended` as the last of
 * them. `whole`: everything, where nothing was streamed. `finish`: the end of a stream. */
void openai_call(choice *c, const char *name, size_t n_name, const ellm_json *arguments);
void openai_delta(choice *c, int index, bool ended, reply *r);
void openai_whole(exchange *e, reply *r);
void openai_finish(exchange *e, reply *r);
void embed_whole(exchange *e, reply *r);
void ollama_call(choice *c, const char *name, size_t n_name, const ellm_json *arguments);
void ollama_delta(choice *c, int index, bool ended, reply *r);
void ollama_whole(exchange *e, reply *r);
void ollama_finish(exchange *e, reply *r);

#endif
