/* template.h: a compiled chat template, without a model. The nodes are chat.bin's (FORMAT.md). */
#ifndef ELLM_TEMPLATE_H
#define ELLM_TEMPLATE_H

#include "edgellm.h"

typedef struct ellm_template ellm_template;

/* Checks `data` (chat.bin, aligned to 8 bytes) completely and opens it. The template points into `data`, which must
 * outlive it. TEMPLATE_INVALID if anything is wrong. Immutable afterwards. */
ellm_status ellm_template_open(const uint8_t *data, size_t bytes, ellm_template **opened, ellm_error *error);
void ellm_template_close(ellm_template *opened);

/* As ellm_chat_render. Takes temporary memory from malloc, at most 64 MB (TEMPLATE_LIMIT beyond). */
ellm_status ellm_template_render(const ellm_template *opened, const char *messages_json, const char *extra_json,
                                 bool add_generation_prompt, char *text, size_t cap, size_t *n_bytes,
                                 ellm_error *error);

#endif
