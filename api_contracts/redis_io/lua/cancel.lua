-- Requests the cancellation of a task. A waiting task ends at once. The owner of a running task
-- reads the request in the answer to its next write. For an unknown task the request is stored; if
-- the task arrives, its first claim ends it.
--
-- task             ns:{id}:task    hash        cancel_requested set; terminal status if it waited
-- events           ns:{id}:events  stream      event `cancelled` appended when the task ends here
-- open             ns:open         sorted set  id added with the current time when it ends here
-- pending_cancels  ns:wishes       sorted set  id added when the task is unknown
-- id
-- tail             of the event `cancelled`, see append_event.lua
-- control          channel that running tasks' ids are published on
-- Returns the status that the task had, or 'unknown'.
--
-- Deletes nothing and sets no time to live: producers have no permission for those commands.
local task, events, open, pending_cancels = unpack(KEYS)
local id, tail, control = unpack(ARGV)
local status = redis.call('HGET', task, 'status') or 'unknown'
local now = stamp(now_s())
if status == 'queued' then
  redis.call('HSET', task, 'cancel_requested', 1, 'status', 'cancelled',
    'ended_at', now, 'outcome', '{"step":0}')
  append_event(task, events, tail)
  redis.call('ZADD', open, now, id)
elseif status == 'running' then
  redis.call('HSET', task, 'cancel_requested', 1)
  redis.call('PUBLISH', control, id)
elseif status == 'unknown' then
  redis.call('HSET', task, 'cancel_requested', 1)
  redis.call('ZADD', pending_cancels, now, id)
end
return status
