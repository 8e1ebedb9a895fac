/* constrained.h: what the command line says an answer must be. */
#ifndef EDGELLM_RT_CONSTRAINED_H
#define EDGELLM_RT_CONSTRAINED_H

#include "buffer.h"
#include "options.h"

typedef struct constrained {
    ellm_grammar *grammar; /* NULL: anything */
    ellm_vocabulary *vocabulary;
} constrained;

/* Reads the file, or the text itself where the option's value is one. Close it also after a failure, before the model. */
ellm_status constrained_open(constrained *c, const settings *s, const ellm_model *model, ellm_error *error);
void constrained_close(constrained *c);

#endif
