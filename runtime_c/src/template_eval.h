/* template_eval.h: running the nodes of a template. */
#ifndef ELLM_TEMPLATE_EVAL_H
#define ELLM_TEMPLATE_EVAL_H

#include "template_parts.h"

void ellm_vm_run(machine *vm, uint32_t node);
void ellm_vm_set(machine *vm, uint32_t name, value v);

#endif
