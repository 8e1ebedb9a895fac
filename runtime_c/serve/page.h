/* page.h: the chat page (page/chat.html), which a browser gets at `/`. */
#ifndef EDGELLM_RT_PAGE_H
#define EDGELLM_RT_PAGE_H

#include "reply.h"

/* The page for clients that ask for HTML and take gzip; a line of text for all others, as Ollama has one. */
void page_put(reply *r, const http_request *request);

#endif
