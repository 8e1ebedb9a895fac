/* json_write.h: JSON values back to text. */
#ifndef EDGELLM_RT_JSON_WRITE_H
#define EDGELLM_RT_JSON_WRITE_H

#include "buffer.h"
#include "json.h"

/* Appends a value; what ellm_json_read makes of the text is the same again. */
void buffer_put_value(buffer *b, const ellm_json *value);
/* "key":VALUE, behind a comma where a member stands before it. */
void buffer_put_member(buffer *b, const char *key, const ellm_json *value);
/* A whole text as a JSON string. */
void buffer_put_string(buffer *b, const char *text);
void buffer_put_text(buffer *b, const buffer *text);

#endif
