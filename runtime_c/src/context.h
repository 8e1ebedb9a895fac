/* context.h: what the rest of the library may ask of a context. */
#ifndef ELLM_CONTEXT_H
#define ELLM_CONTEXT_H

#include "edgellm.h"

typedef struct ellm_observer ellm_observer; /* observe.h */
typedef struct ellm_kv ellm_kv;             /* kv.h */

/* Its model and its KV cache. */
const ellm_model *ellm_context_model(const ellm_context *context);
ellm_kv *ellm_context_kv(ellm_context *context);

/* Time of one call of eval with n rows that all want logits, in ns, as measured so far; 0: not known. */
double ellm_context_cost_ns(const ellm_context *context, int32_t n);
int32_t ellm_context_vocab(const ellm_context *context);
/* Most positions that may be added to a session so that truncating it by as many is possible afterwards. */
int32_t ellm_context_spare(const ellm_context *context, int32_t slot);

/* Threads and covers stay as they are now, so that every evaluation runs the same functions. fit: pieces of at most the
 * largest function's rows each run as the smallest function that holds them. */
void ellm_context_settle(ellm_context *context, bool fit);
/* Who watches the steps from now on; NULL: nobody. It must outlive the context or the next call. Who looks at the steps of
 * a GPU begins with buffers of zeros, whatever sessions held. */
void ellm_context_observe(ellm_context *context, const ellm_observer *observer);

#endif
