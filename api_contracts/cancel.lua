-- Asks for a task to be cancelled. A task that nobody owns ends at once; a running one is told by
-- the answer to its owner's next write; of an unknown one the wish is kept for its first claim.
--
-- KEYS[1]  ns:{id}:task    hash        cancel_requested set, or ended
-- KEYS[2]  ns:{id}:events  stream      event `cancelled` appended when it ends here
-- KEYS[3]  ns:open         sorted set  id touched when it ends here: it stays until a worker has
--                                      written Celery's result
-- KEYS[4]  ns:{id}:checkpoint  string  removed when it ends here
-- ARGV     id, event tail, seconds that an ended record lives, control channel
-- gives    the status that the task had, or 'unknown'
--
-- A time to live of 0 removes at once; DEL is a command that producers are not given.
local status = redis.call('HGET', KEYS[1], 'status') or 'unknown'
if status == 'queued' then
  local stamp = string.format('%.6f', now_s())
  redis.call('HSET', KEYS[1], 'cancel_requested', 1, 'status', 'cancelled',
    'ended_at', stamp, 'outcome', '{"step":0}')
  redis.call('ZADD', KEYS[3], stamp, ARGV[1])
  append_event(KEYS[1], KEYS[2], ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  redis.call('EXPIRE', KEYS[4], 0)
elseif status == 'running' then
  redis.call('HSET', KEYS[1], 'cancel_requested', 1)
  redis.call('PUBLISH', ARGV[4], ARGV[1])
elseif status == 'unknown' then
  redis.call('HSET', KEYS[1], 'cancel_requested', 1)
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return status
