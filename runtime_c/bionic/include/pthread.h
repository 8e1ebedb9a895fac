#pragma once
#include <sched.h>
#include <signal.h>
#include <sys/types.h>

typedef long pthread_t;
typedef struct {
    unsigned flags;
    void *stack;
    size_t n_stack_bytes, n_guard_bytes;
    int policy, priority;
    char reserved[16];
} pthread_attr_t;
typedef struct {
    int private[10];
} pthread_mutex_t;
typedef struct {
    int private[12];
} pthread_cond_t;
typedef struct {
    long private[4];
} pthread_barrier_t;
typedef long pthread_mutexattr_t, pthread_condattr_t;
typedef int pthread_barrierattr_t;

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);
int pthread_join(pthread_t thread, void **result);
int pthread_attr_init(pthread_attr_t *attributes);
int pthread_attr_destroy(pthread_attr_t *attributes);
int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t n_bytes);
int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int pthread_mutex_destroy(pthread_mutex_t *mutex);
int pthread_mutex_lock(pthread_mutex_t *mutex);
int pthread_mutex_unlock(pthread_mutex_t *mutex);
int pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes);
int pthread_cond_destroy(pthread_cond_t *condition);
int pthread_cond_signal(pthread_cond_t *condition);
int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int pthread_barrier_init(pthread_barrier_t *barrier, const pthread_barrierattr_t *attributes, unsigned n);
int pthread_barrier_destroy(pthread_barrier_t *barrier);
int pthread_barrier_wait(pthread_barrier_t *barrier);
