#include "pool.h"

#include <sched.h>
#include <unistd.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace puna {
namespace {

constexpr int SPINS = 20000;    // about 100 us, then sleep
constexpr int PATIENCE = 2000;  // at a barrier, then let others run: processors may be too few

void pause() {
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ending_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Pool::run(void (*function)(void*, int), void* argument) {
    function_ = function;
    argument_ = argument;
    if (size_ > 1) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            task_.fetch_add(1);
        }
        wake_.notify_all();
    }
    function(argument, 0);
    barrier();
}

void Pool::barrier() {
    if (size_ == 1) return;
    const uint32_t phase = phase_.load();
    if (arrived_.fetch_add(1) + 1 == uint32_t(size_)) {
        arrived_.store(0);
        phase_.store(phase + 1);
        return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
        if (spins < PATIENCE) {
            pause();
        } else {
            sched_yield();
        }
    }
}

void Pool::work(int thread) {
    for (uint32_t seen = 0;; seen++) {
        for (int spins = 0; task_.load() == seen && !ending_ && spins < SPINS; spins++) pause();
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return task_.load() != seen || ending_; });
        }
        if (ending_) return;
        function_(argument_, thread);
        barrier();
    }
}

std::mutex& step_mutex() {
    static std::mutex* mutex = new std::mutex;
    return *mutex;
}

// Never destroyed at exit: its threads may still be asleep in it.
Pool& pool_of(int size) {
    static Pool* pool = nullptr;
    static pid_t owner = 0;
    if (owner != getpid()) pool = nullptr;  // threads do not survive a fork
    if (pool == nullptr || pool->size() != size) {
        delete pool;
        pool = new Pool(size);
        owner = getpid();
    }
    return *pool;
}

}  // namespace puna
