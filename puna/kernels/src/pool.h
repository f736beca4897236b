// The one pool of threads that native steps run on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace puna {

// Threads that run a function together and meet at barriers. They spin between steps for a while,
// because the next token follows at once, and sleep after that.
class Pool {
   public:
    explicit Pool(int size);
    ~Pool();
    Pool(const Pool&) = delete;

    int size() const { return size_; }

    // Calls function(argument, thread) in all threads, this one being 0, and waits for them.
    void run(void (*function)(void*, int), void* argument);

    // Called by all threads inside of `run`: none goes on before all have come.
    void barrier();

   private:
    void work(int thread);

    const int size_;
    std::vector<std::thread> threads_;
    void (*function_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    std::atomic<uint32_t> task_{0}, arrived_{0}, phase_{0};
    std::atomic<bool> ending_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// The pool of this process, of `size` threads; only with `step_mutex` held.
Pool& pool_of(int size);

std::mutex& step_mutex();

}  // namespace puna
