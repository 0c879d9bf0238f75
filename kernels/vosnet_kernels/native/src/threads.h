// The threads of one call. Plain threads rather than OpenMP: no second OpenMP runtime beside torch's own, and calls
// work in a forked DataLoader worker, where GNU OpenMP deadlocks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace vosnet {

class Team {
 public:
  explicit Team(int num_threads) {
    for (int i = 1; i < num_threads; ++i) {
      try {
        workers_.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {
        break;  // no more threads to be had: those created so far do all the work
      }
    }
  }

  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    start_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(0) ... task(count - 1), each once, and returns when all are done. Throws std::bad_alloc if one did.
  void run(int count, const std::function<void(int)>& task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      next_ = 0;
      busy_ = static_cast<int>(workers_.size());
      ++round_;
    }
    start_.notify_all();
    drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    if (failed_) throw std::bad_alloc();
  }

 private:
  void drain() {
    try {
      for (int i = next_++; i < count_; i = next_++) (*task_)(i);
    } catch (const std::bad_alloc&) {  // must not leave a thread: that would end the process
      failed_ = true;
      next_ = count_;
    }
  }

  void serve() {
    long seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, [&] { return closing_ || round_ != seen; });
        if (closing_) return;
        seen = round_;
      }
      drain();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(int)>* task_ = nullptr;
  std::atomic<int> next_{0};
  std::atomic<bool> failed_{false};
  int count_ = 0, busy_ = 0;
  long round_ = 0;
  bool closing_ = false;
};

}  // namespace vosnet
