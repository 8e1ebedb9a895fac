/* template.h: the compiled chat template (chat.bin). */
#ifndef ELLM_TEMPLATE_H
#define ELLM_TEMPLATE_H

#include "edgellm.h"

typedef struct ellm_template ellm_template;

/* Checks `data` (chat.bin) completely and opens it; `data` must outlive it. TEMPLATE_INVALID if anything is wrong. */
ellm_status ellm_template_open(const uint8_t *data, size_t bytes, ellm_template **result, ellm_error *error);
void ellm_template_close(ellm_template *template);

#endif
