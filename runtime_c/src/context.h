/* context.h: what the rest of the library may ask of a context. */
#ifndef ELLM_CONTEXT_H
#define ELLM_CONTEXT_H

#include "edgellm.h"

/* Time of one call of eval with n rows that all want logits, in ns, as measured so far; 0: not known. */
double ellm_context_cost_ns(const ellm_context *context, int32_t n);
int32_t ellm_context_vocab(const ellm_context *context);
/* Most positions that may be added to a session so that truncating it by as many is possible afterwards. */
int32_t ellm_context_spare(const ellm_context *context, int32_t slot);

#endif
