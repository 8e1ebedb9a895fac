/* tool_calls.h: tells the calls in an answer from its text, as it streams in.
 *
 * A call is <tool_call> {"name": NAME, "arguments": OBJECT} </tool_call>, as Hermes, Qwen and edgellm's demo model write
 * it. What looks like a call and is none stays text. */
#ifndef EDGELLM_RT_TOOL_CALLS_H
#define EDGELLM_RT_TOOL_CALLS_H

#include "buffer.h"
#include "json.h"

typedef struct tool_reader {
    void (*text)(void *user, const char *text, size_t n_bytes);
    void (*call)(void *user, const char *name, size_t n_name, const ellm_json *arguments); /* an object */
    void *user;
    bool is_on;              /* false: everything is text */
    bool in_call, is_behind; /* is_behind: a call, and no text since */
    size_t n_calls;
    buffer held; /* the end of the text so far that may begin a call; within a call, what came of it */
} tool_reader;

void tool_reader_push(tool_reader *r, const char *text, size_t n_bytes);
/* The answer ended. */
void tool_reader_end(tool_reader *r);

#endif
